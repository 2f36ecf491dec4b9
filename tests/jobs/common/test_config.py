"""Reading of configs: overrides, unknown keys, wrong values, and the remedy in each error."""

from pathlib import Path

import pytest

from jobs.common.config import Config, load_config
from model.release_config import PriorConfig
from pipelines.contract.errors import UsageError

CONF = Path(__file__).resolve().parents[3] / "conf"


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "night.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_loads(path: Path) -> None:
    assert isinstance(load_config(str(path)), Config)


def test_defaults_need_no_file_content(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == Config()


def test_set_overrides_the_file_and_keeps_its_neighbours(tmp_path: Path) -> None:
    path = write(tmp_path, "training: {epochs: 2, batch_size: 64}\n")
    config = load_config(path, ["training.epochs=5", "positives.actions={like: 2.0}", "warehouse=elsewhere"])
    assert (config.training.epochs, config.training.batch_size) == (5, 64)
    assert config.positives.actions == {"like": 2.0}
    assert config.warehouse == "elsewhere"


def test_spark_settings_keep_the_dots_in_their_names(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, ""), ["spark.spark.driver.memory=2g"]).spark == {"spark.driver.memory": "2g"}


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("trainig: {}\n", [], "did you mean 'training'"),
        ("training: {epoch: 1}\n", [], "training.epoch: there is no such key; did you mean 'epochs'"),
        ("features: {history: {lenght: 3}}\n", [], "did you mean 'length'"),
        ("features: {item: [{kind: categorical, nam: x}]}\n", [], "did you mean 'name'"),
        ("training: {epochs: many}\n", [], "training.epochs"),
        ("features: {item: [{kind: categorical, name: item_id}]}\n", [], "is reserved for the id"),
        ("negatives: {uniform: 0, popularity: 0, coarse: 0, fine: 0}\n", [], "at least one kind of negative"),
        ("", ["spark.spark.sql.session.timeZone=Asia/Shanghai"], "spark.sql.session.timeZone is always UTC"),
        ("positives: {actions: {click: .inf}}\n", [], "positives.actions.click"),
        (
            "negatives: {coarse_stages: [recal]}\n",
            [],
            "'recal' is not a stage; stages are recall, coarse, fine, rerank",
        ),
        ("negatives: {fine_stages: [fine, exposed]}\n", [], "'exposed' items were shown to the user"),
        ("negatives: {coarse_stages: [coarse, fine]}\n", [], "'fine' is in coarse_stages and in fine_stages"),
        ("negatives: {coarse_stages: []}\n", [], "coarse_stages is empty: name a stage, or set coarse to 0"),
        ("features: {context: [{kind: categorical, name: action}]}\n", [], "'action' is not known when the request"),
        ("features: {context: [{kind: categorical, name: history}]}\n", [], "the name 'history' is reserved"),
        (
            "features: {user: [{kind: numeric, name: load}], context: [{kind: numeric, name: load}]}\n",
            [],
            "'load' is also under features.user",
        ),
        ("features: {context: [{kind: hour}, {kind: hour, zone: Europe/Berlin}]}\n", [], "'hour' is listed twice"),
        ("features: {context: [{kind: hour, zone: Mars}]}\n", [], "'Mars' is not a time zone"),
        ("features: {context_zone: nowhere}\n", [], "'nowhere' is not a time zone"),
        (
            "features: {context: [{kind: numeric, name: ts}]}\ninputs: {interactions: {columns: {event_time: ts}}}\n",
            [],
            "'ts' is the column of event_time",
        ),
        ("features: {item: [{kind: hour}]}\n", [], "features.item"),
        ("features: {item: [{kind: vector, name: text}]}\n", [], "length"),
        ("- a\n", [], "must be a mapping"),
        ("a: [\n", [], "not valid YAML"),
        ("", ["training.epochs"], "write it as section.key=value"),
    ],
)
def test_a_wrong_config_is_refused_by_name(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=r"night\.yaml|--set") as caught:
        load_config(write(tmp_path, text), overrides)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_last_positives_have_no_date_so_the_prior_does_not_age(tmp_path: Path) -> None:
    def prior_of(*overrides: str) -> PriorConfig | None:
        return load_config(write(tmp_path, "prior: {half_life_days: [30, 7]}"), [*overrides]).prior_in_use

    last_positive = "evaluation.split=last_positive"
    assert prior_of() == PriorConfig(half_life_days=[7.0, 30.0])
    assert prior_of(last_positive) == PriorConfig(half_life_days=[30.0])
    assert prior_of(last_positive, "prior.beta=[0]", "loss.lift=false") is None


def test_a_missing_file_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load_config("nowhere.yaml")


def test_the_hash_depends_on_the_named_sections_and_the_seed() -> None:
    config = Config()
    other = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"days": 3})})
    assert config.hash_of("positives") == other.hash_of("positives")
    assert config.hash_of("evaluation") != other.hash_of("evaluation")
    assert config.hash_of("positives") != Config(seed=1).hash_of("positives")
