"""What people would use instead: one file per family of models. Peers with `venv` run in a separate virtual environment."""

from dataclasses import dataclass

PEER_VENV = ".venv-peers"
PACKAGES = ("rectools[torch]==0.19.0", "torch-rechub==0.9.0")  # of PEER_VENV; rectools brings implicit


@dataclass(frozen=True)
class PeerFile:
    """Where a peer is. `random`: its lists depend on a seed, so it runs with every seed."""

    module: str
    name: str  # of its class
    venv: bool = False
    random: bool = False


PEERS = {
    "popularity": PeerFile("popularity", "Popularity"),
    "item_cf": PeerFile("item_cf", "ItemCf"),
    "ease": PeerFile("ease", "Ease"),
    "als": PeerFile("implicit_models", "Als", venv=True, random=True),
    "bpr": PeerFile("implicit_models", "Bpr", venv=True, random=True),
    "dssm": PeerFile("rechub", "Dssm", venv=True, random=True),
    "youtube_dnn": PeerFile("rechub", "YoutubeDnn", venv=True, random=True),
    "sasrec": PeerFile("sasrec", "SasRec", venv=True, random=True),
}
