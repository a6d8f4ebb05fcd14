"""Barriers of the adders of deterministic calls (consumer.cuh, writer.cuh), with warps and adders in random order."""
import random

class Barrier:
    def __init__(self, count):
        self.count, self.left, self.phase = count, count, 0
    def arrive(self):
        self.left -= 1
        if self.left == 0: self.phase, self.left = self.phase + 1, self.count
    def done(self, parity): return (self.phase - 1) % 2 == parity

def run(seed):
    draw = random.Random(seed)
    turns = draw.random() < 0.4  # QuerySplit::kTurns
    buffers = 2 if turns else draw.choice([1, 2])
    adders = 2 if turns else 3
    parts = 4 if turns else 8
    total = draw.randrange(0, 14)
    full = [Barrier(parts) for _ in range(adders)]
    block = [None] * adders
    empty = [Barrier(1) for _ in range(buffers)]
    data = [[None] * parts for _ in range(buffers)]
    dS = [[0, 0] for _ in range(total)]  # warps that have stored, per row block
    freed = [0] * total
    added, order = [], []
    def warp(group, w):
        part = w if turns else 4 * group + w
        def hand(n):
            b = n % buffers
            yield lambda: empty[b].done(n // buffers & 1 ^ 1)
            assert data[b][part] is None
            data[b][part] = n
            yield lambda: True
            if part == 0: block[n % adders] = n
            full[n % adders].arrive()
        count = 0
        for i in range(total):
            # two buffers of dS
            if i >= 2: yield lambda i=i: freed[i - 2] == (4 if turns else 8)
            dS[i][group] += 1
            if i and (not turns or (count & 1) == group):
                yield lambda i=i: sum(dS[i - 1]) == 8
                freed[count - 1] += 1
                yield from hand(count - 1)
            count += 1
        if total and (not turns or (count & 1) == group):
            yield lambda: sum(dS[total - 1]) == 8
            yield from hand(count - 1)
        for i in range(1, buffers + 1):
            if i <= count: yield lambda i=i: empty[(count - i) % buffers].done((count - i) // buffers & 1)
        for a in range(adders):
            if turns and a == group: continue
            if w == 0 and (turns or group == 0): block[a] = -1
            yield lambda: True
            full[a].arrive()
    def adder(a):
        number, parity = a, 0
        while True:
            yield lambda: full[a].done(parity)
            n = block[a]
            if n < 0: return
            assert n == number
            b = number % buffers
            yield lambda: True  # turn
            assert data[b] == [n] * parts
            data[b] = [None] * parts
            empty[b].arrive()
            yield lambda: True
            added.append(n)
            number += adders; parity ^= 1
    agents = [warp(g, w) for g in range(2) for w in range(4)] + [adder(a) for a in range(adders)]
    waiting = [None] * len(agents); alive = set(range(len(agents)))
    slow = draw.randrange(len(agents))
    while alive:
        ready = [a for a in alive if waiting[a] is None or waiting[a]()]
        assert ready, ("deadlock", seed)
        fast = [a for a in ready if a != slow] or ready
        a = draw.choice(fast if draw.random() < 0.9 else ready)
        try: waiting[a] = next(agents[a])
        except StopIteration: alive.remove(a)
    assert sorted(added) == list(range(total))

for seed in range(20000): run(seed)
print("20000 runs: no deadlock, every dQ added once")
