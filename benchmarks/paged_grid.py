"""The cells of bench_paged.py, part by part."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from cells import DECODE_GRID
from paged_cells import (
    PAGE,
    AppendCell,
    DecodeCell,
    Job,
    LayersCell,
    PagedCell,
    PrefillCell,
    PrefixCell,
    RopeCell,
    paged,
)

# Seconds of a part in a run; what a part leaves goes to the next.
BUDGETS = {"decode": 72, "uneven": 16, "prefill": 26, "append": 26, "shared": 6, "layers": 18}
PARTS = tuple(BUDGETS)

CEILING, COPY, FLASHINFER = Job("read_ceiling"), Job("device_copy"), Job("flashinfer", PAGE)
# Contiguous caches of the same bytes.
CONTIGUOUS = (Job("flash_decode"), Job("flash_decode_lengths"))
# Pages of 1 and 64, and what is slow, only where there is something to see.
ALL_PAGES = ("8x1x8192", "8x8x8192", "8x64x2048", "8x64x8192", "8x256x1024", "32x64x2048")
PALLAS = ("8x1x8192", "8x8x8192", "8x64x2048", "32x64x2048")
# bfloat16, Hq = 32, D = 128, pages of 16: GB/s of FlashInfer 0.7.2 on an H200 on 2026-11-20, by
# (Hkv, B, K), for runs on machines that have no FlashInfer.
FLASHINFER_EARLIER = {
    (8, 1, 1024): 480,
    (8, 1, 2048): 852,
    (8, 1, 8192): 1845,
    (8, 1, 32768): 3162,
    (8, 1, 131072): 4028,
    (8, 8, 1024): 1792,
    (8, 8, 2048): 2440,
    (8, 8, 8192): 3745,
    (8, 8, 32768): 4249,
    (8, 8, 131072): 4396,
    (8, 64, 1024): 3641,
    (8, 64, 2048): 4052,
    (8, 64, 8192): 4374,
    (8, 64, 32768): 4429,
    (8, 64, 131072): 4439,
    (8, 256, 1024): 4101,
    (8, 256, 2048): 4296,
    (8, 256, 8192): 4430,
    (8, 256, 32768): 4433,
    (32, 1, 8192): 3078,
    (32, 64, 2048): 4399,
    (32, 64, 8192): 4450,
}


def decode() -> list[PagedCell]:
    """Even lengths beside contiguous caches."""
    cells: list[PagedCell] = []
    for shape in DECODE_GRID:
        jobs = [CEILING, Job("torch_cudnn"), FLASHINFER, *paged(PAGE), *CONTIGUOUS]
        jobs += paged(1, 64) if shape.name in ALL_PAGES else ()
        jobs += [Job("pallas", PAGE)] if shape.name in PALLAS else []
        lengths = (shape.capacity,) * shape.batch
        cells.append(DecodeCell(jobs=tuple(jobs), kv_heads=shape.kv_heads, lengths=lengths))
    return cells


def log_uniform(least: int, most: int, batch: int) -> tuple[int, ...]:
    """Random lengths, as likely between 128 and 256 as between 16k and 32k."""
    logs = np.random.default_rng(0).uniform(math.log(least), math.log(most), batch)
    return tuple(int(length) for length in np.exp(logs))


def evenly(lengths: Iterable[int]) -> tuple[int, ...]:
    """As many live requests and rows in all, as even as they can be."""
    live = [length for length in lengths if length]
    base, more = divmod(sum(live), len(live))
    return tuple(base + (b < more) for b in range(len(live)))


def uneven_pair(name: str, lengths: tuple[int, ...], **fields: int) -> list[PagedCell]:
    """A cell with these lengths, behind one with as many bytes in even ones."""
    jobs = (*paged(PAGE), FLASHINFER)
    return [
        DecodeCell(jobs=(CEILING, *jobs), lengths=evenly(lengths), control=name, **fields),
        DecodeCell(jobs=jobs, lengths=lengths, uneven=name, **fields),
    ]


def uneven() -> list[PagedCell]:
    """Lengths that differ, and slots without a request."""
    short = (512,) * 32
    return [
        *uneven_pair("1x131072-among-63x512", (*short, 131072, *short[1:])),
        *uneven_pair("64-log-uniform-128-32768", log_uniform(128, 32768, 64)),
        *uneven_pair("8-log-uniform-128-32768", log_uniform(128, 32768, 8)),
        *uneven_pair("64x2048-in-256-slots", (2048,) * 64 + (0,) * 192),
    ]


def chunked(
    batch: int, chunk: int, history: int, pages: tuple[int, ...] = (PAGE,), **fields: int
) -> PrefillCell:
    """Chunks of one length behind histories of one length."""
    return PrefillCell(
        jobs=(*paged(*pages), Job("flash_attention_varlen"), FLASHINFER),
        queries=(chunk,) * batch,
        lengths=(history + chunk,) * batch,
        **fields,
    )


def mixed(chunks: int, chunk: int, history: int, rows: int, **fields: int) -> PrefillCell:
    """Chunks of a prefill and single rows of decodes in one call."""
    return PrefillCell(
        jobs=(*paged(PAGE), Job("flash_attention_varlen"), FLASHINFER),
        queries=(chunk,) * chunks + (1,) * rows,
        lengths=(history + chunk,) * chunks + log_uniform(history // 8, 2 * history, rows),
        mixed=f"{chunks}x{chunk}+{history}-and-{rows}-decodes",
        **fields,
    )


def prefill() -> list[PagedCell]:
    """Chunked prefill, and a batch of prefills and decodes."""
    every = (PAGE, 64, 1)
    return [
        chunked(8, 512, 0),
        chunked(8, 512, 4096, every),
        chunked(8, 512, 16384),
        chunked(4, 1024, 8192),
        chunked(4, 2048, 0),
        chunked(4, 2048, 16384, every),
        chunked(1, 512, 16384),
        chunked(1, 2048, 4096, every),
        chunked(1, 2048, 16384),
        mixed(8, 512, 4096, 56),
    ]


def append_cell(
    op: str, batch: int, new: int, rope: bool = False, xla: bool = False, **fields: int
) -> AppendCell:
    """An append beside a copy of as many bytes, and with ``xla`` beside the scatter of XLA."""
    ours = paged(PAGE) if op == "paged_append" else (Job("jax_baracuda"),)
    jobs = (*ours, COPY, *([Job("xla")] if xla else []))
    # A few rows take a call less time than the host to hand over the operands of each set.
    most = 384 if batch * new <= 64 else 96
    return AppendCell(
        **({"history": 112, "most_calls": most} | fields),
        jobs=jobs,
        op=op,
        batch=batch,
        new=new,
        rope=rope,
    )


def append() -> list[PagedCell]:
    """A decode step's rows, those of a chunk, and those of long prompts; RoPE alone."""
    sizes = ((64, 1), (8, 512), (8, 8192))
    return [
        *(append_cell("paged_append", *size, xla=size[1] < 8192) for size in sizes),
        *(append_cell("paged_append", *size, rope=True) for size in sizes),
        *(append_cell("kv_cache_append", *size, xla=size[1] < 8192) for size in sizes),
        append_cell("kv_cache_append", 64, 1, rope=True),
        RopeCell(jobs=(Job("jax_baracuda"), Job("xla"), COPY), tokens=8192),
    ]


def shared() -> list[PagedCell]:
    """Many requests behind one prefix."""
    jobs = (Job("paged_decode", PAGE), *paged(PAGE))
    return [PrefixCell(jobs=jobs, batch=batch, prefix=8192, suffix=512) for batch in (32, 8)]


STEP_JOBS = (
    *(Job(part) for part in ("appends", "decodes", "unrolled")),
    *(Job("jax_baracuda", graph=graph) for graph in ("body", "loop")),
)


def layers() -> list[PagedCell]:
    """Steps that scan over layers, from short to long."""
    shapes = ((32, 8, 1024), (8, 64, 2048), (32, 64, 1024))
    return [LayersCell(jobs=STEP_JOBS, layers=n, batch=b, length=k) for n, b, k in shapes]


FULL = {
    "decode": decode(),
    "uneven": uneven(),
    "prefill": prefill(),
    "append": append(),
    "shared": shared(),
    "layers": layers(),
}
# With --quick: enough to see whether a change helped.
QUICK = {
    "8x1x8192",
    "8x8x2048",
    "8x64x2048",
    "8x64x8192",
    "32x64x2048",
    "even-1x131072-among-63x512",
    "1x131072-among-63x512",
    "prefill-8x512+4096",
    "prefill-4x2048+16384",
    "8x512+4096-and-56-decodes",
    "paged-64",
    "paged-65536",
    "paged-65536-rope",
    "rope-8192",
    "shared-32x8192+512",
    "layers-8x64x2048",
}


def tiny() -> dict[str, list[PagedCell]]:
    """A cell or two of every kind, of the size of a CPU: what --dry-run runs."""
    few = {"most_calls": 2}
    small = few | {"kv_heads": 2, "query_heads": 4, "head_dim": 32}
    return {
        "decode": [
            DecodeCell(jobs=(*paged(PAGE, 1, 64), *CONTIGUOUS), lengths=(128,) * 3, **small)
        ],
        "uneven": uneven_pair("tiny-uneven", (200, 5, 0), **small),
        "prefill": [
            chunked(2, 32, 64, (PAGE, 64, 1), **small),
            mixed(2, 16, 64, 3, **small),
        ],
        "append": [
            *(
                append_cell(op, 3, 2, rope=rope, xla=True, **small, history=20)
                for op in ("paged_append", "kv_cache_append")
                for rope in (False, True)
            ),
            RopeCell(jobs=(Job("jax_baracuda"), Job("xla")), tokens=8, **small),
        ],
        "shared": [PrefixCell(jobs=shared()[0].jobs, batch=3, prefix=128, suffix=64, **small)],
        "layers": [LayersCell(jobs=STEP_JOBS, layers=3, batch=2, length=50, **small)],
    }
