"""One row of a benchmark: a mask, heads, head dimensions, dtype and pass."""
import random
from dataclasses import dataclass

import masks


@dataclass
class Row:
    """What is computed. FLOPs are those of visible cells."""

    mask: masks.Mask
    heads_q: int
    heads_kv: int
    head_dim: int
    head_dim_v: int
    dtype: str
    backward: bool

    @property
    def heads(self):
        """As in "64:8"."""
        return f"{self.heads_q}:{self.heads_kv}"

    @property
    def dims(self):
        """As in "128" or "192/128"."""
        same = self.head_dim == self.head_dim_v
        return f"{self.head_dim}" if same else f"{self.head_dim}/{self.head_dim_v}"

    @property
    def scale(self):
        """Softmax scale, the library's default."""
        return self.head_dim**-0.5

    def flops(self):
        """Forward: two products a cell. Backward: five, three of them over head_dim."""
        d, dv = self.head_dim, self.head_dim_v
        each = 3 * d + 2 * dv if self.backward else d + dv
        return 2 * self.mask.area() * self.heads_q * each

    def sample(self, side, count, seed):
        """Tokens to check on one side ("q" or "k"): first, last, ends of slices, and random ones; sorted."""
        total = self.mask.total_q if side == "q" else self.mask.total_k
        ends = sorted({e for s in self.mask.slices for e in (s[0:2] if side == "q" else s[2:4])})
        draw = random.Random(f"{seed}/{side}/{self.mask.name}/{total}")
        edges = [e + d for e in ends for d in (-1, 0) if 0 <= e + d < total]
        chosen = {0, total - 1, *draw.sample(edges, min(len(edges), count // 2))}
        while len(chosen) < min(count, total):
            chosen.add(draw.randrange(total))
        return sorted(chosen)

    def describe(self):
        """The row's part of a result file that is known before it runs."""
        return {
            **self.mask.describe(),
            "heads": self.heads,
            "head_dim": self.dims,
            "dtype": self.dtype,
            "pass": "backward" if self.backward else "forward",
            "flops": self.flops(),
        }

    def title(self):
        """For progress lines."""
        kind = "bwd" if self.backward else "fwd"
        return f"{kind} {self.heads:>5} d{self.dims:<7} {self.mask.name:<21} {self.mask.total_q:>6}"
