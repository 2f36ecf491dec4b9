"""Builds HTML and SVG. Text is escaped unless it is markup already, so no value of a table can become markup."""

import html
from collections.abc import Iterable, Sequence


class Markup(str):
    """Text that is HTML. Made by `element` and `escaped` only."""

    __slots__ = ()


def escaped(value: object) -> Markup:
    """A value as text in HTML. Markup stays as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def element(name: str, *content: object, **attributes: object) -> Markup:
    """An element. In names of attributes a final _ is dropped, and _ means -; attributes that are None are left out.

    >>> element("p", "1 < 2", class_="note")
    '<p class="note">1 &lt; 2</p>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{joined(content)}</{name}>")


def joined(parts: Iterable[object]) -> Markup:
    """Parts one after the other."""
    return Markup("".join(escaped(part) for part in parts if part is not None))


def table(header: Sequence[object], rows: Iterable[Sequence[object]], numbers: Sequence[int] = ()) -> Markup:
    """A table that scrolls sideways on a narrow screen. `numbers`: columns that are aligned to the right."""

    def row(cells: Sequence[object], name: str) -> Markup:
        return element(
            "tr", *(element(name, c, class_="number" if i in numbers else None) for i, c in enumerate(cells))
        )

    head = element("thead", row(header, "th"))
    body = element("tbody", *(row(cells, "td") for cells in rows))
    return element("div", element("table", head, body), class_="scroll")


def section(anchor: str, title: str, *content: object) -> Markup:
    """A section of the page."""
    return element("section", element("h2", title), *content, id=anchor)


def details(summary: object, *content: object, is_open: bool = False) -> Markup:
    """A part that the reader opens."""
    opening = Markup("<details open>" if is_open else "<details>")
    return joined([opening, element("summary", summary), *content, Markup("</details>")])


def note(*content: object) -> Markup:
    """A paragraph in small print."""
    return element("p", *content, class_="note")


def bar(share: float, style: str = "model") -> Markup:
    """A horizontal bar of `share` (0 to 1) of the width."""
    width = f"width:{100 * min(max(share, 0.0), 1.0):.1f}%"
    return element("span", element("span", class_=f"fill {style}", style=width), class_="bar")


def legend(names: Iterable[tuple[str, str]]) -> Markup:
    """The names of lines or marks, each with its style."""
    entries = (element("li", element("i", class_=f"key {style}"), name) for name, style in names)
    return element("ul", *entries, class_="legend")
