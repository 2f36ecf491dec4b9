"""Sections of the page: some users with what was retrieved for them and why, and some items with their neighbours."""

from typing import Any

from jobs.morning.markup import Markup, details, element, joined, note, section, table
from jobs.morning.night_files import NightFiles

OPEN = 4  # users whose card is open at first


def users_section(night: NightFiles) -> Markup:
    """Each chosen user: history, what was retrieved and by which item of the history, and what they did next."""
    users = night.examples.get("users", {})
    if not users.get("rows"):
        return section("users", "Users explained", note("The night chose no users to explain."))
    names = users["names"]
    cards = [_user(user, names, users, is_open=place < OPEN) for place, user in enumerate(users["rows"])]
    days = ", ".join(users["days"])
    after = f"What they did next is on the log of {days}." if days else "The log of the next day has not arrived yet."
    if users["split"] == "last_positive":
        after = "What they did next is their last positive, which was held out."
    says = (
        f"{len(cards)} users, chosen by hash, as release {users['release']} (night of {users['ds']}) answers them at the end "
        f"of that day. “Near” is the item of the history with the highest cosine. {after}"
    )
    return section("users", f"{len(cards)} users explained", note(says), element("div", *cards, class_="cards"))


def _user(user: dict[str, Any], names: dict[str, Any], users: dict[str, Any], is_open: bool) -> Markup:
    hits = sum(item["rank"] is not None for item in user["next"])
    wanted = f"{hits} of {len(user['next'])} found in the best {users['k']}" if user["next"] else ""
    rows = [
        [rank, _item(item["item"], names, hit=item["hit"]), _near(item, names), f"{item['score']:.3f}"]
        for rank, item in enumerate(user["retrieved"], 1)
    ]
    history = user["history"] or []
    more = user["history_length"] - len(history)
    had = [element("li", _short(item, names)) for item in history] or [element("li", "no history")]
    if more > 0:
        had.append(element("li", f"and {more:,} before"))
    then = [
        element("li", _short(item["item"], names), f" (rank {item['rank']})" if item["rank"] else f" (not in {users['k']})",
                class_="hit" if item["rank"] else None)
        for item in user["next"]
    ]  # fmt: skip
    parts: list[object] = [
        element("p", "History, newest first", class_="label"), element("ul", *had, class_="chips"),
        element("p", "Retrieved", class_="label"),
        table(("", "item", "near (cosine)", "score"), rows, numbers=(0, 3)),
    ]  # fmt: skip
    if then:
        parts += [element("p", "Did next", class_="label"), element("ul", *then, class_="chips")]
    title = element("b", f"User {user['user']}")
    return element(
        "div", details(joined([title, f" · {wanted}" if wanted else ""]), *parts, is_open=is_open), class_="card"
    )


def _near(item: dict[str, Any], names: dict[str, Any]) -> object:
    if item["near"] is None:
        return element("span", "–", class_="soft")
    return joined([_short(item["near"], names), f" ({item['cosine']:.2f})"])


def items_section(night: NightFiles) -> Markup:
    """Each chosen item with its nearest neighbours."""
    items = night.examples.get("items", {})
    if not items.get("rows"):
        return section("items", "Items and their neighbours", note("The night chose no items."))
    names = items["names"]
    cards = []
    for item in items["rows"]:
        rows = [[_item(near, names), f"{cosine:.3f}"] for near, cosine in item["near"]]
        heading = element("h3", _name(item["item"], names), element("span", item["why"]))
        about = names.get(str(item["item"]), {}).get("about")
        cards.append(
            element("div", heading, note(about) if about else None, table(("nearest", "cosine"), rows, numbers=(1,)),
                    class_="card")
        )  # fmt: skip
    says = f"Neighbours by cosine of the vectors of release {items['release']} (night of {items['ds']})."
    return section(
        "items", f"{len(cards)} items and their neighbours", note(says), element("div", *cards, class_="cards")
    )


def _name(item: int, names: dict[str, Any]) -> str:
    known = names.get(str(item))
    if not known:
        return f"item index {item}"
    return str(known["title"] or known["id"])


def _short(item: int, names: dict[str, Any]) -> Markup:
    """The name of an item; an id with the first of its categories, because an id alone says nothing."""
    known = names.get(str(item), {})
    about = "" if known.get("title") else known.get("about", "").partition(" · ")[0]
    return joined([_name(item, names), element("span", f" {about}", class_="soft") if about else None])


def _item(item: int, names: dict[str, Any], hit: bool = False) -> Markup:
    known = names.get(str(item), {})
    small = " · ".join(text for text in (known.get("id") if known.get("title") else None, known.get("about")) if text)
    name = element("span", f"{_name(item, names)} ✓", class_="good") if hit else _name(item, names)
    return joined([name, element("small", small) if small else None])
