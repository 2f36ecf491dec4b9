"""Checks of Faiss index factory strings. Checked here because Faiss ends the process on some invalid ones."""

import re

PATTERN = r"^(Flat|IVF\d+,(Flat|SQ8|PQ\d+)|HNSW\d+)$"
MOST_CELLS = 2**24
# Links per item and level of HNSW. With 1 link the number of levels is unbounded. A link takes 8 bytes per item.
FEWEST_LINKS, MOST_LINKS = 2, 1024


def factory_fault(factory: str, dim: int, *, item_item: int = 0, prior: bool = False) -> str | None:
    """Why no index of this factory can be built for vectors of model.dim = `dim`, or None if it can.

    `item_item`: components that the item-item part adds to the vectors. `prior`: a recency prior adds one.

    >>> factory_fault("IVF4,PQ7", 16)
    'IVF4,PQ7 splits vectors of model.dim = 16 into 7 equal parts: take PQ1, PQ2, PQ4, PQ8 or PQ16, or model.dim = 14'
    >>> factory_fault("IVF4,PQ8", 16) is None
    True
    >>> factory_fault("IVF4,PQ8", 15, prior=True) is None
    True
    >>> factory_fault("IVF4,PQ8", 16, item_item=15, prior=True) is None
    True
    """
    if not re.fullmatch(PATTERN, factory):
        return f"{factory!r} is not one of Flat, IVFn,Flat, IVFn,SQ8, IVFn,PQm and HNSWm"
    if (cells := re.match(r"IVF(\d+)", factory)) and not 1 <= int(cells[1]) <= MOST_CELLS:
        return f"{factory} has {int(cells[1]):,} cells: take 1 to {MOST_CELLS:,}"
    if (links := re.match(r"HNSW(\d+)", factory)) and not FEWEST_LINKS <= int(links[1]) <= MOST_LINKS:
        return (
            f"{factory} has {int(links[1]):,} links per item: take {FEWEST_LINKS} to {MOST_LINKS:,}, for example HNSW32"
        )
    length, name = dim + item_item + prior, "model.dim"
    name += f" + {item_item} (item-item part)" if item_item else ""
    name += " + 1 (recency prior)" if prior else ""
    if (parts := re.search(r"PQ(\d+)", factory)) and ((count := int(parts[1])) < 1 or length % count):
        divisors = [f"PQ{m}" for m in range(1, length + 1) if length % m == 0]
        possible = f"{', '.join(divisors[:-1])} or {divisors[-1]}" if len(divisors) > 1 else divisors[0]
        key, value = ("model.item_item.rank", item_item) if item_item else ("model.dim", dim)
        fitting = value - length % count if 0 < count <= length else 0
        return f"{factory} splits vectors of {name} = {length} into {count} equal parts: take {possible}, or " + (
            f"{key} = {fitting}" if fitting > 0 else f"another {key}"
        )
    return None
