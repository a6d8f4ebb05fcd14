"""Turns of the deterministic Hopper backward: every row block is met by tiles whose turns are 0, 1, 2 ... without a gap, and in the
order of the tiles' places; and each tile's row blocks are visited once. Written after schedule.cuh, row_walk.cuh, producer.cuh."""
import random

KEYS = 128

def rows_of_keys(v, j0, j1):
    j1 = min(j1, v["kv_len"])
    if j0 >= j1: return (0, 0)
    sinks = j0 < v["sinks"]
    begin, end = 0, v["q_len"]
    if v["causal"]: begin = max(begin, j0 - v["offset"])
    if v["wr"] >= 0 and not sinks: begin = max(begin, j0 - v["offset"] - v["wr"])
    if v["wl"] >= 0 and not sinks: end = min(end, j1 - v["offset"] + v["wl"])
    return (min(begin, max(end, 0)), max(end, 0))

def units(v, n, unit):
    b, e = rows_of_keys(v, n * KEYS, (n + 1) * KEYS)
    if b >= e: return (0, 0)
    return (b // unit * unit, -(-e // unit) * unit)

def overlap(v, n, row, unit):
    if v["q_seg"] is None: return True
    q = v["q_seg"][row:min(row + unit, v["q_rows"])]
    k = v["k_seg"][n * KEYS:min((n + 1) * KEYS, v["k_rows"])]
    return not (q[-1] < k[0] or k[-1] < q[0])

def visits(v, n, unit, backward, group):
    b, e = units(v, n, unit)
    step = -unit if backward else unit
    row = e - unit if backward else b
    out = []
    while b <= row < e:
        if overlap(v, n, row, unit): out += [(h, row) for h in range(group)]
        row += step
    return out

def turn(v, n, row, unit, backward):
    others = range(0, n) if backward else range(n + 1, -(-v["k_rows"] // KEYS))
    count = 0
    for o in others:
        b, e = units(v, o, unit)
        count += b <= row < e and overlap(v, o, row, unit)
    return count

def clamped(x, low, high): return min(max(x, low), high)

def keys_of_rows(v, i0, i1):
    i1 = min(i1, v["q_len"])
    if i0 >= i1: return (0, 0, 0)
    last = i1 - 1 + v["offset"]
    limit = min(v["kv_len"], last + 1) if v["causal"] else v["kv_len"]
    end = max(0, limit if v["wr"] < 0 else min(limit, last + v["wr"] + 1))
    begin = 0 if v["wl"] < 0 else clamped(i0 + v["offset"] - v["wl"], 0, end)
    window = v["wl"] >= 0 or v["wr"] >= 0
    return (max(0, min(v["sinks"], limit)) if window else 0, begin, end)

def below(v, keys, block):
    """Blocks of keys before `block` that see some of the rows."""
    sinks, begin, end = -(-keys[0] // KEYS), keys[1] // KEYS, -(-keys[2] // KEYS) if keys[1] < keys[2] else 0
    return min(block, sinks) + max(0, min(block, end) - max(begin, sinks))

def fast_turn(v, n, row, unit, backward):
    keys = keys_of_rows(v, row, row + unit)
    if backward: return below(v, keys, n)
    return below(v, keys, 1 << 30) - below(v, keys, n + 1)

def places(rows, tiles, section, last, reverse):
    before = rows - last
    for place in range(rows * tiles):
        early = place < before * tiles
        sec = section if early else max(last, 1)
        base = 0 if early else before
        end = rows if base else before if before else rows
        index = place - base * tiles
        first = base + index // (sec * tiles) * sec
        within = index % (sec * tiles)
        n = min(sec, end - first)
        row = first + within % n
        yield row, tiles - 1 - within // n if row < reverse else within // n

def sequence(draw):
    q_rows, k_rows = draw.randrange(0, 900), draw.randrange(0, 1500)
    segments = draw.random() < 0.3 and q_rows and k_rows
    ids = lambda n: sorted(draw.randrange(4) for _ in range(n))
    return dict(q_rows=q_rows, k_rows=k_rows, q_len=draw.choice([q_rows, draw.randrange(q_rows + 1)]),
                kv_len=draw.choice([k_rows, draw.randrange(k_rows + 1)]), q_seg=ids(q_rows) if segments else None,
                k_seg=ids(k_rows) if segments else None)

def check(seed):
    draw = random.Random(seed)
    unit, group = draw.choice([64, 128]), draw.choice([1, 3])
    mask = dict(causal=draw.random() < 0.5, wl=draw.choice([-1, -1, 0, 100, 400]), wr=draw.choice([-1, -1, 0, 70]),
                sinks=draw.choice([0, 0, 5, 200]))
    if mask["wl"] < 0 and mask["wr"] < 0: mask["sinks"] = 0
    rows = draw.randrange(1, 12)
    sequences = []
    for _ in range(rows):
        v = sequence(draw) | mask
        v["offset"] = draw.choice([0, v["k_rows"] - v["q_rows"]])
        sequences.append(v)
    longest = max(-(-v["k_rows"] // KEYS) for v in sequences)
    tiles = max(1, draw.choice([longest, longest // 2]))  # the latter: longer than was said
    slots = draw.choice([1, 3, 8, 66, 132])
    section = min(max(slots // tiles, 1), rows)
    last = min(rows, max(-(-2 * slots // tiles), section))
    reverse = draw.choice([0, rows - last, rows])
    added = {}
    seen = set()
    for row, slot in places(rows, tiles, section, last, reverse):
        assert (row, slot) not in seen
        seen.add((row, slot))
        v = sequences[row]
        blocks = -(-v["k_rows"] // KEYS)
        share = -(-blocks // tiles)
        mine = list(range(slot * share, min((slot + 1) * share, blocks)))
        for n in reversed(mine) if row < reverse else mine:
            at = visits(v, n, unit, row >= reverse, group)
            assert len(set(at)) == len(at)
            for h, r in at:
                t = turn(v, n, r, unit, row >= reverse)
                if v["q_seg"] is None:
                    assert t == fast_turn(v, n, r, unit, row >= reverse), (seed, v, n, r)
                assert t == added.get((row, h, r), 0), (seed, row, n, r)
                added[row, h, r] = t + 1
    assert len(seen) == rows * tiles

if __name__ == "__main__":
    for seed in range(3000): check(seed)
    print("3000 runs: all turns come, in the order of the places")
