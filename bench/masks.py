"""Masks of the benchmark grid and of tests/cases/masks.json, as slices (q0, q1, k0, k1, type)."""
import json
import os
import random
from dataclasses import dataclass

from magi import BI_CAUSAL, CAUSAL, FULL, INV_CAUSAL, MASK_TYPES

# Document lengths in thousands of tokens and their weights, as the published varlen benchmarks draw them.
INTERVALS = [
    (0, 2, 0.16), (2, 4, 0.05), (4, 8, 0.04), (8, 16, 0.06), (16, 32, 0.08), (32, 64, 0.21),
    (64, 128, 0.40), (128, 256, 0.20), (256, 512, 0.05), (512, 1024, 0.04), (1024, 2048, 0.01), (2048, 4096, 0.01),
]  # fmt: skip

PUBLISHED = ["full", "causal", "varlen_full", "varlen_causal", "sliding_window_causal", "varlen_block_causal"]
TARGETS = ["documents_8", "documents_skewed", "window_1024", "block_causal_4096"]
GRID = PUBLISHED + TARGETS


@dataclass
class Mask:
    """A mask, and what peers need to say the same: documents, and which keys of its document a query sees."""

    name: str
    total_q: int
    total_k: int
    slices: list
    # Boundaries of documents from 0 to the total; None for a mask that has no such form.
    documents: list = None
    causal: bool = False
    # Keys before the diagonal that a query sees, and the size of blocks seen whole.
    window_left: int = None
    block: int = None
    # Drawn lengths, to be published with the result.
    lengths: list = None

    def area(self):
        """Visible cells; slices must not overlap."""
        return sum(_area(s) for s in self.slices)

    def visible(self, row):
        """Key ranges that query `row` sees."""
        found = []
        for slice_ in self.slices:
            if slice_[0] <= row < slice_[1]:
                k0, k1 = _keys(slice_, row)
                if k0 < k1:
                    found.append((k0, k1))
        return sorted(found)

    def viewers(self, key):
        """Query ranges that see `key`."""
        found = []
        for q0, q1, k0, k1, kind in self.slices:
            if k0 <= key < k1:
                # causal: k - q <= k1 - q1; inverse causal: k - q >= k0 - q0
                first = max(q0, key - (k1 - q1)) if kind in (CAUSAL, BI_CAUSAL) else q0
                last = min(q1 - 1, key - (k0 - q0)) if kind in (INV_CAUSAL, BI_CAUSAL) else q1 - 1
                if first <= last:
                    found.append((first, last + 1))
        return sorted(found)

    def of_queries(self, positions):
        """What the queries at `positions`, ascending, see of all keys: a mask in which they stand one after the other."""
        slices, row = [], 0
        for a, b in runs(positions):
            for q0, q1, k0, k1, kind in self.slices:
                first, last = max(a, q0), min(b, q1)
                # The corners that diagonals run through move with the rows that are cut off.
                c0 = k0 + first - q0 if kind in (INV_CAUSAL, BI_CAUSAL) else k0
                c1 = k1 + last - q1 if kind in (CAUSAL, BI_CAUSAL) else k1
                if first < last and c0 < c1:
                    slices.append((row + first - a, row + last - a, c0, c1, kind))
            row += b - a
        return Mask(self.name, row, self.total_k, slices)

    def of_seen_keys(self):
        """(mask, keys): the keys that lie in some slice, ascending, and the mask in which they stand one after the other."""
        joined = []
        for k0, k1 in sorted(s[2:4] for s in self.slices):
            if joined and k0 <= joined[-1][1]:
                joined[-1][1] = max(joined[-1][1], k1)
            else:
                joined.append([k0, k1])
        ends = _boundaries(b - a for a, b in joined)

        def moved(slice_):
            q0, q1, k0, k1, kind = slice_
            shift = next(end - a for end, (a, b) in zip(ends, joined) if a <= k0 and k1 <= b)
            return (q0, q1, k0 + shift, k1 + shift, kind)

        mask = Mask(self.name, self.total_q, ends[-1], [moved(s) for s in self.slices])
        return mask, [key for a, b in joined for key in range(a, b)]

    def describe(self):
        """What a result file says about the mask."""
        text = {"mask": self.name, "tokens": self.total_q, "tokens_k": self.total_k, "area": self.area()}
        if self.lengths is not None:
            text["lengths"] = self.lengths
        return text


def runs(positions):
    """Ascending integers as ranges [first, end)."""
    found = []
    for position in positions:
        if found and found[-1][1] == position:
            found[-1][1] += 1
        else:
            found.append([position, position + 1])
    return found


def _keys(slice_, row):
    """Keys [k0, k1) that `row` of the slice sees; empty when k1 <= k0."""
    q0, q1, k0, k1, kind = slice_
    first = max(k0, row + k0 - q0) if kind in (INV_CAUSAL, BI_CAUSAL) else k0
    end = min(k1, row + k1 - q1 + 1) if kind in (CAUSAL, BI_CAUSAL) else k1
    return first, end


def _area(slice_):
    q0, q1, k0, k1, kind = slice_
    rows, width = max(0, q1 - q0), max(0, k1 - k0)
    if kind == FULL:
        return rows * width
    # Rows of a band see as many keys each; those of a triangle one more or one fewer than the row before, up to all.
    least = max(0, width - rows + 1)
    if kind == BI_CAUSAL:
        return rows * least
    return (width * (width + 1) - least * (least - 1)) // 2 if rows else 0


def draw_lengths(tokens, seed):
    """Document lengths that fill `tokens`: an interval by weight among those that begin below what is left, a length in
    it evenly, at most a quarter of the tokens and what is left."""
    draw = random.Random(f"{seed}/{tokens}")
    lengths, left = [], tokens
    while left > 0:
        fitting = [(lo * 1024, hi * 1024, weight) for lo, hi, weight in INTERVALS if lo * 1024 < left]
        lo, hi, _ = draw.choices(fitting, [weight for _, _, weight in fitting])[0]
        lengths.append(min(draw.randint(max(lo, 1), hi), max(tokens // 4, 1), left))
        left -= lengths[-1]
    return lengths


def _boundaries(lengths):
    ends = [0]
    for length in lengths:
        ends.append(ends[-1] + length)
    return ends


def _packed(name, lengths, causal, show_lengths):
    ends = _boundaries(lengths)
    kind = CAUSAL if causal else FULL
    slices = [(a, b, a, b, kind) for a, b in zip(ends, ends[1:])]
    return Mask(name, ends[-1], ends[-1], slices, ends, causal, lengths=lengths if show_lengths else None)


def _window(name, tokens, left):
    """Each query sees `left` keys before its own, and its own."""
    head = min(left, tokens)
    slices = [(0, head, 0, head, CAUSAL)]
    if head < tokens:
        slices.append((head, tokens, 0, tokens, BI_CAUSAL))
    return Mask(name, tokens, tokens, slices, [0, tokens], True, window_left=left)


def _blocks(name, lengths, block, show_lengths):
    """Each query sees its document from the beginning to the end of its own block."""
    ends = _boundaries(lengths)
    slices = []
    for begin, end in zip(ends, ends[1:]):
        for row in range(begin, end, block):
            stop = min(row + block, end)
            slices.append((row, stop, begin, stop, FULL))
    return Mask(name, ends[-1], ends[-1], slices, ends, block=block, lengths=lengths if show_lengths else None)


def grid_mask(name, tokens, seed):
    """A mask of GRID; None where `tokens` are too few for it to be itself."""
    if name in ("full", "causal"):
        return _packed(name, [tokens], name == "causal", False)
    if name in ("varlen_full", "varlen_causal"):
        return _packed(name, draw_lengths(tokens, seed), name == "varlen_causal", True)
    if name == "varlen_block_causal":
        return _blocks(name, draw_lengths(tokens, seed), 2048, True)
    # The published window shows 1,024 keys before a query's own: 1,025.
    if name == "sliding_window_causal":
        return _window(name, tokens, 1024) if tokens > 1024 else None
    if name == "window_1024":
        return _window(name, tokens, 1023) if tokens > 1024 else None
    # block_causal_4096 is in the grid; any other size may be named.
    if name.startswith("block_causal_") and name[13:].isdigit() and int(name[13:]) > 0:
        block = int(name[13:])
        return _blocks(name, [tokens], block, False) if tokens > block else None
    if name == "documents_8":
        ends = [tokens * i // 8 for i in range(9)]
        return _packed(name, [b - a for a, b in zip(ends, ends[1:])], True, False)
    if name == "documents_skewed":
        lengths = [tokens >> i for i in range(1, 8)]
        lengths.append(tokens - sum(lengths))
        return _packed(name, lengths, True, False)
    raise KeyError(f"no mask '{name}'; there are {', '.join(GRID)}")


def case_masks(path=None):
    """Masks of tests/cases/masks.json by name."""
    if path is None:
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        path = os.path.join(root, "tests", "cases", "masks.json")
    with open(path, encoding="utf-8") as file:
        cases = json.load(file)
    found = {}
    for case in cases:
        slices = [(*s["q"], *s["k"], MASK_TYPES[s["type"]]) for s in case["slices"]]
        found[case["name"]] = Mask(case["name"], case["total_seqlen_q"], case["total_seqlen_k"], slices)
    return found
