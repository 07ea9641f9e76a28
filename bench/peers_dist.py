"""What else computes attention over several GPUs, written with PyTorch: head all-to-all ("Ulysses") and all-gather of keys and values,
around cuDNN, and head all-to-all around FlashAttention-2 for packed documents.

Communication is not hidden behind attention here. Beyond that each is meant to be at its best: tensors are copied only where a
collective needs another order, collectives of one direction are under way together, gathered keys are kept for backward.
distributed.py lets them take turns with the library.
"""
import torch
import torch.distributed as dist

from peers import Unable

aten = torch.ops.aten


class Cudnn:
    """cuDNN's attention, as PyTorch has it. Tensors are [batch, tokens, heads, dim], lse [batch, heads, tokens, 1]; a causal mask's
    diagonal starts in the top-left corner."""

    @staticmethod
    def forward(q, k, v, causal, scale):
        """(out, lse, what backward wants besides)"""
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        found = aten._scaled_dot_product_cudnn_attention(*heads_first, None, True, 0.0, causal, False, scale=scale)
        # Versions of PyTorch differ in whether lse has a last dimension of 1; backward gets it as it came.
        lse = found[1]
        return found[0].transpose(1, 2), lse.view(*lse.shape[:3], 1), (lse.shape, *found[6:8])

    @staticmethod
    def backward(dout, q, k, v, out, lse, kept, causal, scale):
        """(dq, dk, dv)"""
        heads_first = [x.transpose(1, 2) for x in (dout, q, k, v, out)]
        sizes = (q.shape[1], k.shape[1])
        lse_shape, *seed = kept
        # PyTorch keeps compiled backwards by the strides of q, k and v alone: out and dout must be dense always.
        found = aten._scaled_dot_product_cudnn_attention_backward(
            *heads_first, lse.reshape(-1, *lse_shape[1:]), *seed, None, None, None, *sizes, 0.0, causal, scale=scale
        )
        return tuple(x.transpose(1, 2) for x in found)


class Plain:
    """The same by matrix products, in the tensors' dtype or f32 where that is more exact; for tests and small sizes."""

    @staticmethod
    def _scores(q, k, causal, scale):
        grouped = q.unflatten(2, (k.shape[2], -1))
        s = torch.einsum("bqhgd,bkhd->bhgqk", grouped, k) * scale
        if causal:
            s = s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).triu(1), -torch.inf)
        return s, grouped

    @staticmethod
    def _exact(*tensors):
        return [x if x.dtype == torch.float64 else x.float() for x in tensors]

    @classmethod
    def forward(cls, q, k, v, causal, scale):
        """As of Cudnn."""
        dtype = q.dtype
        q, k, v = cls._exact(q, k, v)
        s, _ = cls._scores(q, k, causal, scale)
        lse = torch.logsumexp(s, -1, keepdim=True)
        out = torch.einsum("bhgqk,bkhd->bqhgd", torch.exp(s - lse), v).flatten(2, 3)
        return out.to(dtype), lse.flatten(1, 2), ()

    @classmethod
    def backward(cls, dout, q, k, v, out, lse, _kept, causal, scale):
        """As of Cudnn."""
        dtype = q.dtype
        dout, q, k, v, out = cls._exact(dout, q, k, v, out)
        s, grouped = cls._scores(q, k, causal, scale)
        p = torch.exp(s - lse.unflatten(1, (k.shape[2], -1)))
        dout, out = (x.unflatten(2, (k.shape[2], -1)) for x in (dout, out))
        delta = (dout * out).sum(-1).permute(0, 2, 3, 1)[..., None]
        ds = p * (torch.einsum("bqhgd,bkhd->bhgqk", dout, v) - delta) * scale
        dq = torch.einsum("bhgqk,bkhd->bqhgd", ds, k).flatten(2, 3)
        dk = torch.einsum("bhgqk,bqhgd->bkhd", ds, grouped)
        dv = torch.einsum("bhgqk,bqhgd->bkhd", p, dout)
        return tuple(x.to(dtype) for x in (dq, dk, dv))


class Calls:
    """One call of a kernel for each document, or for each block of a block-causal mask: their queries do not meet."""

    def __init__(self, kernel, mask, scale, _device):
        if mask.documents is None or mask.window_left is not None:
            raise Unable("only documents and blocks")
        self.kernel, self.scale = kernel, scale
        self.pieces = [(q0, q1, k0, k1) for q0, q1, k0, k1, _ in mask.slices]
        self.causal = mask.causal
        # Documents have keys of their own; blocks share those before them.
        self.apart = mask.block is None

    def forward(self, q, k, v):
        """out [1, tokens, heads, dim]; what backward needs is kept."""
        self.kept = [
            self.kernel.forward(q[:, q0:q1], k[:, k0:k1], v[:, k0:k1], self.causal, self.scale) for q0, q1, k0, k1 in self.pieces
        ]
        return self._joined([out for out, _, _ in self.kept])

    def backward(self, dout, q, k, v, _out):
        """(dq, dk, dv)"""
        parts = []
        for (q0, q1, k0, k1), (out, lse, more) in zip(self.pieces, self.kept):
            inputs = (dout[:, q0:q1], q[:, q0:q1], k[:, k0:k1], v[:, k0:k1])
            parts.append(self.kernel.backward(*inputs, out, lse, more, self.causal, self.scale))
        dq, dk, dv = zip(*parts)
        if self.apart:
            return tuple(self._joined(x) for x in (dq, dk, dv))
        return self._joined(dq), self._added(dk, k), self._added(dv, v)

    @staticmethod
    def _joined(parts):
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _added(self, parts, like):
        total = torch.zeros(like.shape, dtype=like.dtype, device=like.device)
        for (_, _, k0, k1), part in zip(self.pieces, parts):
            total[:, k0:k1] += part
        return total


class Varlen:
    """All documents in one call of FlashAttention-2, through the operators below torch.nn.attention.varlen. `kernel` is not used."""

    def __init__(self, _kernel, mask, scale, device):
        if mask.documents is None or len(mask.documents) == 2 or mask.window_left is not None or mask.block is not None:
            raise Unable("only packed documents: cuDNN is faster on one")
        ends = torch.tensor(mask.documents, dtype=torch.int32, device=device)
        longest = max(b - a for a, b in zip(mask.documents, mask.documents[1:]))
        self.documents = (ends, ends, longest, longest, 0.0, mask.causal)
        self.scale = scale

    def forward(self, q, k, v):
        """As of Calls."""
        found = aten._flash_attention_forward(q[0], k[0], v[0], *self.documents, False, scale=self.scale)
        self.out, self.kept = found[0], found[1:4]
        return self.out[None]

    def backward(self, dout, q, k, v, _out):
        """As of Calls."""
        lse, *more = self.kept
        found = aten._flash_attention_backward(dout[0], q[0], k[0], v[0], self.out, lse, *self.documents, *more, scale=self.scale)
        return tuple(x[None] for x in found)


def wait_for(works):
    """The stream goes on when all of these collectives are done."""
    for work in works:
        work.wait()


class Peer:
    """A way to compute a row on the ranks of the default process group. `prepare` first; then `load`, `forward`, `backward`, in which
    every rank takes part. Local tensors are [tokens, heads, dim], row i being token positions[i]."""

    def __init__(self, device, kernel=Cudnn):
        self.device, self.kernel = device, kernel
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def prepare(self, row):
        """Which tokens this rank holds: `positions`. Raises Unable where the row cannot be computed this way."""
        if row.mask.total_q != row.mask.total_k:
            raise Unable("queries and keys differ in number")
        if row.head_dim != row.head_dim_v:
            raise Unable("head_dim_v must be head_dim")
        if row.mask.total_q % self.world:
            raise Unable("tokens do not divide among ranks")
        self.row, self.tokens = row, row.mask.total_q // self.world
        begin = self.rank * self.tokens
        self.positions = torch.arange(begin, begin + self.tokens)

    @property
    def positions_k(self):
        """Tokens whose keys this rank holds: those of its queries."""
        return self.positions

    def load(self, q, k, v, dout):
        """This rank's inputs, dense."""
        self.q, self.k, self.v, self.dout = q, k, v, dout

    def bytes_moved(self):
        """What all ranks receive from others, by pass."""
        each = self.tokens * self.row.head_dim * self.q.element_size() * (self.world - 1)
        return {name: each * rows for name, rows in self._rows_moved().items()}


class HeadAllToAll(Peer):
    """Tokens are exchanged for heads, every rank attends over all tokens with its share of the heads, and results go back."""

    def __init__(self, device, attend, kernel=Cudnn):
        super().__init__(device, kernel)
        self.attend_with = attend

    def prepare(self, row):
        """As of Peer. Where there are fewer key heads than ranks each goes to several."""
        super().prepare(row)
        hq, hk, world = row.heads_q, row.heads_kv, self.world
        if hq % world or (hk % world and world % hk):
            raise Unable("heads do not divide among ranks")
        # Key heads that differ from rank to rank, ranks that share one, and heads of a rank.
        self.groups = min(world, hk)
        self.copies = world // self.groups
        self.heads_q, self.heads_kv = hq // world, hk // self.groups
        self.attend = self.attend_with(self.kernel, row.mask, row.scale, self.device)

    def load(self, q, k, v, dout):
        """As of Peer; takes the buffers of both passes."""
        super().load(q, k, v, dout)
        heads = self.heads_q + 2 * self.heads_kv
        self.send = q.new_empty(self.world, self.tokens, heads, self.row.head_dim)
        self.received = torch.empty_like(self.send)

    def _by_rank(self, x):
        """[tokens, query heads, dim] as [ranks, tokens, heads of a rank, dim], not moved."""
        return x.unflatten(1, (self.world, self.heads_q)).transpose(0, 1)

    def _returned(self, x):
        """Starts the way back of x [1, all tokens, heads of a rank, dim]; (work, [ranks, tokens, heads of a rank, dim])."""
        x = x[0].contiguous()
        back = torch.empty_like(x)
        return dist.all_to_all_single(back, x, async_op=True), back.unflatten(0, (self.world, self.tokens)), x

    def _inputs(self):
        """q, k and v of this rank's heads as [1, all tokens, heads, dim]: views of what was received."""
        whole = self.received.flatten(0, 1)[None]
        return whole.split((self.heads_q, self.heads_kv, self.heads_kv), 2)

    def forward(self):
        """out [tokens, heads_q, dim]"""
        q, *kv = self.send.split((self.heads_q, self.heads_kv, self.heads_kv), 2)
        q.copy_(self._by_rank(self.q))
        for part, x in zip(kv, (self.k, self.v)):
            shared = x.unflatten(1, (self.groups, 1, self.heads_kv)).expand(-1, -1, self.copies, -1, -1)
            part.unflatten(0, (self.groups, self.copies)).copy_(shared.permute(1, 2, 0, 3, 4))
        dist.all_to_all_single(self.received, self.send)
        self.heads_out = self.attend.forward(*self._inputs())
        work, back, _sent = self._returned(self.heads_out)
        work.wait()
        self.out = back.transpose(0, 1).flatten(1, 2)

    def backward(self):
        """dq, dk, dv like q, k, v, from what forward left."""
        dout = torch.empty(self.world, self.tokens, self.heads_q, self.row.head_dim, dtype=self.q.dtype, device=self.device)
        send = self._by_rank(self.dout).contiguous()
        dist.all_to_all_single(dout, send)
        gradients = self.attend.backward(dout.flatten(0, 1)[None], *self._inputs(), self.heads_out)
        works, backs, _sent = zip(*(self._returned(x) for x in gradients))
        wait_for(works)
        self.dq = backs[0].transpose(0, 1).flatten(1, 2)
        self.dk, self.dv = (self._shares_added(x) for x in backs[1:])

    def _shares_added(self, back):
        """A key head's gradients of the ranks that share it, added; [tokens, heads_kv, dim]."""
        shares = back.unflatten(0, (self.groups, self.copies))
        one = shares[:, 0] if self.copies == 1 else shares.sum(1)
        return one.transpose(0, 1).flatten(1, 2)

    def _rows_moved(self):
        q, kv = self.world * self.heads_q, self.world * self.heads_kv
        return {"forward": 2 * q + 2 * kv, "backward": 2 * q + 2 * kv}


class AllGather(Peer):
    """Every rank has its queries and fetches all keys and values. Full masks lie in contiguous shares; causal ones zigzag, a rank
    having the pieces r and 2 * world - 1 - r of twice as many as ranks, so that all have as much to do."""

    def prepare(self, row):
        """As of Peer."""
        super().prepare(row)
        mask = row.mask
        if mask.documents is None or len(mask.documents) != 2 or mask.window_left is not None or mask.block is not None:
            raise Unable("only full and causal masks of one document")
        self.causal = mask.causal
        if self.causal:
            if self.tokens % 2:
                raise Unable("tokens do not divide into two pieces a rank")
            piece = self.tokens // 2
            both = (self.rank, 2 * self.world - 1 - self.rank)
            self.positions = torch.cat([torch.arange(p * piece, (p + 1) * piece) for p in both])

    def load(self, q, k, v, dout):
        """As of Peer; takes the buffers of both passes."""
        super().load(q, k, v, dout)
        shape = (self.world * self.tokens, self.row.heads_kv, self.row.head_dim)
        self.all_k, self.all_v = (q.new_empty(shape) for _ in range(2))

    def _halves(self, whole, mine):
        """(part of the gathered tensor, this rank's part of it), as they are gathered. Second pieces lie first, so that the keys of
        pieces 0 to world - 1 follow those of world to 2 * world - 2 - r: what piece 2 * world - 1 - r sees whole is one view."""
        if not self.causal:
            return [(whole, mine)]
        half, piece = whole.shape[0] // 2, self.tokens // 2
        return [(whole[:half], mine[piece:]), (whole[half:], mine[:piece])]

    def _views(self, whole):
        """What pieces r and 2 * world - 1 - r see beyond their own tokens, as [1, keys, heads, dim]."""
        piece, half = self.tokens // 2, whole.shape[0] // 2
        return whole[None, half : half + self.rank * piece], whole[None, (self.rank + 1) * piece :]

    def forward(self):
        """out [tokens, heads_q, dim]"""
        works = []
        for whole, mine in ((self.all_k, self.k), (self.all_v, self.v)):
            works += [dist.all_gather_into_tensor(a, b, async_op=True) for a, b in self._halves(whole, mine)]
        wait_for(works)
        scale, kernel = self.row.scale, self.kernel
        if not self.causal:
            self.whole = kernel.forward(self.q[None], self.all_k[None], self.all_v[None], False, scale)
            self.out = self.whole[0][0]
            return
        q, k, v = (x.unflatten(0, (2, -1)) for x in (self.q, self.k, self.v))
        out, lse, self.kept = kernel.forward(q, k, v, True, scale)
        self.kept_seen = []
        for piece, (keys, values) in enumerate(zip(self._views(self.all_k), self._views(self.all_v))):
            if not keys.shape[1]:
                self.kept_seen.append(None)
                continue
            other, other_lse, kept = kernel.forward(q[piece, None], keys, values, False, scale)
            self.kept_seen.append(kept)
            mine = slice(piece, piece + 1)
            # [1, heads, tokens, 1] as [1, tokens, heads, 1]; in the tensors' dtype, as one kernel takes it.
            weight = torch.sigmoid(other_lse - lse[mine]).transpose(1, 2).to(out.dtype)
            torch.lerp(out[mine], other, weight, out=out[mine])
            lse[mine] = torch.logaddexp(lse[mine], other_lse)
        self.whole = (out, lse)
        self.out = out.flatten(0, 1)

    def backward(self):
        """dq, dk, dv like q, k, v, from what forward left."""
        scale, kernel = self.row.scale, self.kernel
        if self.causal:
            self.dq, all_dk, all_dv = self._causal_gradients()
        else:
            tensors = [x[None] for x in (self.dout, self.q, self.all_k, self.all_v)]
            found = kernel.backward(*tensors, *self.whole, False, scale)
            self.dq, all_dk, all_dv = (x[0].contiguous() for x in found)
        self.dk, self.dv = torch.empty_like(self.k), torch.empty_like(self.v)
        works = []
        for whole, mine in ((all_dk, self.dk), (all_dv, self.dv)):
            works += [dist.reduce_scatter_tensor(b, a, async_op=True) for a, b in self._halves(whole, mine)]
        wait_for(works)

    def _causal_gradients(self):
        """dq of this rank, and its part of all dk and dv in the order of the gathered tensors."""
        scale, kernel = self.row.scale, self.kernel
        dout, q, k, v = (x.unflatten(0, (2, -1)) for x in (self.dout, self.q, self.k, self.v))
        out, lse = self.whole
        dq, *own = kernel.backward(dout, q, k, v, out, lse, self.kept, True, scale)
        all_dkv = [torch.zeros_like(self.all_k), torch.zeros_like(self.all_v)]
        views = zip(*(self._views(x) for x in (self.all_k, self.all_v, *all_dkv)))
        for piece, (keys, values, *sums) in enumerate(views):
            if not keys.shape[1]:
                continue
            mine = slice(piece, piece + 1)
            found = kernel.backward(dout[mine], q[mine], keys, values, out[mine], lse[mine], self.kept_seen[piece], False, scale)
            dq[mine] += found[0]
            for total, part in zip(sums, found[1:]):
                total += part
        for total, (first, second) in zip(all_dkv, own):
            pieces = total.unflatten(0, (2, self.world, -1))
            pieces[0, self.rank] += second
            pieces[1, self.rank] += first
        return dq.flatten(0, 1), *all_dkv

    def _rows_moved(self):
        rows = self.world * 2 * self.row.heads_kv
        return {"forward": rows, "backward": rows}


PEERS = {
    "ulysses_cudnn": lambda device, kernel=Cudnn: HeadAllToAll(device, Calls, kernel),
    "allgather_cudnn": AllGather,
    "ulysses_fa2": lambda device, kernel=None: HeadAllToAll(device, Varlen, kernel),
}
