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

def visits(v, n, unit, order, lag, group):
    """RowWalk: from `start` upwards, then downwards."""
    b, e = units(v, n, unit)
    a, _, way = order
    start = 1 << 30 if way & 2 else units(v, a, unit)[0] + lag
    start = min(max(start, b), e)
    row = start if start < e else start - unit
    out = []
    while row >= b:
        if overlap(v, n, row, unit): out += [(h, row) for h in range(group)]
        if row < start: row -= unit
        else: row = row + unit if row + unit < e else start - unit
    return out

def turn(v, n, row, unit, order):
    a, b, way = order
    end = min(b, -(-v["k_rows"] // KEYS)) if way & 1 else n
    count = 0
    for o in range(0, max(a, end)):
        if not (o < a or (o < end and (not way & 1 or o > n))): continue
        x, y = units(v, o, unit)
        count += x <= row < y and overlap(v, o, row, unit)
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

def fast_turn(v, n, row, unit, order):
    keys = keys_of_rows(v, row, row + unit)
    a, b, way = order
    if not way & 1: return below(v, keys, n)
    return below(v, keys, a) + below(v, keys, b) - below(v, keys, n + 1)

def places(rows, tiles, section, last, reverse, wave):
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
        if wave:
            number = within // wave
            begin = number * wave
            stop = min(begin + wave, n * tiles)
            way = 3 if number % 2 == 0 else 0
            at = begin + stop - 1 - within if way else within
            row = at % n
            yield first + row, at // n, ((begin + n - 1 - row) // n, (stop + n - 1 - row) // n, way)
        else:
            row = first + within % n
            yield (row, tiles - 1 - within // n, (0, tiles, 1)) if row < reverse else (row, within // n, (0, tiles, 2))

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
    wave = draw.choice([0, slots])
    lag = draw.choice([0, 1, 3, 50]) * unit if wave else 0
    if wave:
        section = max(2 * slots // tiles, 1)
        last = min(rows, section + rows % section)
        reverse = 0
    else:
        section = min(max(slots // tiles, 1), rows)
        last = min(rows, max(-(-2 * slots // tiles), section))
        reverse = draw.choice([0, rows - last, rows])
    added = {}
    seen = set()
    for row, slot, order in places(rows, tiles, section, last, reverse, wave):
        assert (row, slot) not in seen
        seen.add((row, slot))
        v = sequences[row]
        blocks = -(-v["k_rows"] // KEYS)
        share = -(-blocks // tiles)
        order = order[0] * share, order[1] * share, order[2]
        mine = list(range(slot * share, min((slot + 1) * share, blocks)))
        for n in reversed(mine) if order[2] & 1 else mine:
            at = visits(v, n, unit, order, lag, group)
            assert len(set(at)) == len(at)
            b, e = units(v, n, unit)
            assert len(at) == group * sum(overlap(v, n, r, unit) for r in range(b, e, unit))
            for h, r in at:
                t = turn(v, n, r, unit, order)
                if v["q_seg"] is None:
                    assert t == fast_turn(v, n, r, unit, order), (seed, v, n, r)
                assert t == added.get((row, h, r), 0), (seed, row, n, r)
                added[row, h, r] = t + 1
    assert len(seen) == rows * tiles

if __name__ == "__main__":
    for seed in range(3000): check(seed)
    print("3000 runs: all turns come, in the order of the places")
