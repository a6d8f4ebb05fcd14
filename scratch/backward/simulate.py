"""Runs the barriers of pair_*.cuh with warps in random order.

Does everybody come to an end, and does every read meet what it wants? A model written by hand after
the code, not the code. `python scratch/backward/simulate.py`
"""

import itertools
import random

GRADIENT_STAGES = 2


class Barrier:
    """An mbarrier: arrivals and bytes of a phase."""

    def __init__(self, count):
        self.count, self.left, self.bytes, self.phase = count, count, 0, 0

    def arrive(self, expect=0):
        self.bytes += expect
        assert self.left > 0
        self.left -= 1
        self.settle()

    def complete(self, count):
        self.bytes -= count
        self.settle()

    def settle(self):
        if self.left == 0 and self.bytes == 0:
            self.phase, self.left = self.phase + 1, self.count

    def done(self, parity):  # of the phase before the current one
        return (self.phase - 1) % 2 == parity


class Cta:
    def __init__(self, query_stages, dout_stages):
        self.query_stages, self.dout_stages = query_stages, dout_stages
        self.key_full, self.key_empty = Barrier(1), Barrier(8)
        self.value_full, self.value_empty = Barrier(1), Barrier(4)
        self.query_full = [Barrier(1) for _ in range(query_stages)]
        self.query_empty = [Barrier(16) for _ in range(query_stages)]
        self.dout_full = [Barrier(1) for _ in range(dout_stages)]
        self.dout_empty = [Barrier(16) for _ in range(dout_stages)]
        self.weights_full, self.weights_empty = Barrier(4), Barrier(4)
        self.gradient_full = [Barrier(1) for _ in range(GRADIENT_STAGES)]
        self.gradient_empty = [Barrier(16) for _ in range(GRADIENT_STAGES)]
        self.key = self.value = None
        self.query = [[None, None] for _ in range(query_stages)]  # halves
        self.dout = [[None, None] for _ in range(dout_stages)]
        self.weights = [None] * 4  # of warps
        self.gradient = [[[None] * 4, [None] * 4] for _ in range(GRADIENT_STAGES)]  # [rank][warp]
        self.gathered = {0: 0, 1: 0}  # warps at a named barrier
        self.tile = [None] * 3
        self.due = [None, None]  # of each warpgroup's first warp; -1: the end
        self.announced, self.added = [Barrier(1), Barrier(1)], [Barrier(4), Barrier(4)]
        self.come = [0, 0]


class Run:
    def __init__(self, tiles, query_stages, dout_stages, values_first, seed):
        self.random = random.Random(seed)
        self.values_first = values_first
        self.tiles = tiles  # row blocks of each; 0: unseen
        self.ctas = [Cta(query_stages, dout_stages) for _ in range(2)]
        self.copies = []  # under way: functions that finish them
        self.sums = {}  # (rank, part, warp) -> row blocks whose dQ was added

    def go(self):
        agents = [self.producer(r) for r in range(2)]
        agents += [self.weigher(r, w) for r in range(2) for w in range(4)]
        agents += [self.differentiator(r, w) for r in range(2) for w in range(4)]
        agents += [self.keeper(r, part) for r in range(2) for part in range(2)]
        waiting = [None] * len(agents)
        alive = set(range(len(agents)))
        while alive:
            ready = [a for a in alive if waiting[a] is None or waiting[a]()]
            moves = len(ready) + len(self.copies)
            assert moves, "deadlock"
            pick = self.random.randrange(moves)
            if pick >= len(ready):
                self.copies.pop(pick - len(ready))()
                continue
            try:
                waiting[ready[pick]] = next(agents[ready[pick]])
            except StopIteration:
                alive.remove(ready[pick])
        assert not self.copies
        total = sum(self.tiles)
        for r, part, w in itertools.product(range(2), range(2), range(4)):
            assert self.sums.get((r, part, w), []) == list(range(total))

    def both(self, name, stage):
        for cta in self.ctas:
            getattr(cta, name)[stage].arrive()

    def producer(self, r):
        c = self.ctas[r]
        n = 0
        for t, blocks in enumerate(self.tiles):
            c.tile[t % 3] = (t, blocks)
            if not blocks:
                yield from self.waits(c.key_empty, t % 2 ^ 1)
                yield from self.waits(c.value_empty, t % 2 ^ 1)
                c.value_full.arrive()
                c.key_full.arrive()
            for b in range(blocks):
                s = n % c.query_stages
                yield from self.waits(c.query_empty[s], n // c.query_stages % 2 ^ 1)
                c.query_full[s].arrive(2)
                self.multicast(r, n, s, "query", "query_full")
                if b == 0:
                    for name in ("key", "value"):
                        yield from self.waits(getattr(c, name + "_empty"), t % 2 ^ 1)
                        getattr(c, name + "_full").arrive(1)
                        self.load(c, name, t)
                s = n % c.dout_stages
                yield from self.waits(c.dout_empty[s], n // c.dout_stages % 2 ^ 1)
                c.dout_full[s].arrive(2)
                self.multicast(r, n, s, "dout", "dout_full")
                n += 1
        yield from self.waits(c.key_empty, len(self.tiles) % 2 ^ 1)
        c.tile[len(self.tiles) % 3] = None
        c.key_full.arrive()

    @staticmethod
    def waits(barrier, parity):
        yield lambda: barrier.done(parity)

    def load(self, c, name, t):
        def finish():
            setattr(c, name, t)
            getattr(c, name + "_full").complete(1)

        self.copies.append(finish)

    def multicast(self, r, n, s, name, full):
        for c in self.ctas:

            def finish(c=c):
                getattr(c, name)[s][r] = n
                getattr(c, full)[s].complete(1)

            self.copies.append(finish)

    def query_sum(self, r, n, t):
        """Waits for dS of row block n and reads it and K."""
        c = self.ctas[r]
        s = n % GRADIENT_STAGES
        yield from self.waits(c.gradient_full[s], n // GRADIENT_STAGES % 2)
        yield lambda: True  # the products take their time
        assert c.gradient[s] == [[n] * 4, [n] * 4]
        assert c.key == t

    def keeper(self, r, part):
        """keep_turns(): turns come after any time."""
        c = self.ctas[r]
        count = 1
        while True:
            yield from self.waits(c.announced[part], (count & 1) ^ 1)
            due = c.due[part]
            if due == -1:
                return
            assert due == count - 1
            yield lambda: True
            c.come[part] = count
            yield from self.waits(c.added[part], (count & 1) ^ 1)
            for w in range(4):
                assert self.sums[r, part, w][-1] == count - 1
            count += 1

    def set_due(self, r, part, w, n):
        if w == 0:
            self.ctas[r].due[part] = n
            self.ctas[r].announced[part].arrive()

    def add(self, r, part, w, n):
        self.both("gradient_empty", n % GRADIENT_STAGES)
        yield lambda: self.ctas[r].come[part] == n + 1
        self.sums.setdefault((r, part, w), []).append(n)
        self.ctas[r].added[part].arrive()

    def weigher(self, r, w):
        c = self.ctas[r]
        n = t = 0
        while True:
            yield from self.waits(c.key_full, t % 2)
            if c.tile[t % 3] is None:
                self.set_due(r, 0, w, -1)
                return
            assert c.tile[t % 3][0] == t
            blocks = c.tile[t % 3][1]
            if not blocks:
                c.key_empty.arrive()
            for b in range(blocks):
                if b == 0:
                    yield from self.scores(c, n, t)
                yield lambda: True  # S(n), weights, dV(n - 1)
                if b and not self.values_first:
                    self.both("dout_empty", (n - 1) % c.dout_stages)
                yield from self.waits(c.weights_empty, n % 2 ^ 1)
                c.weights[w] = n
                c.weights_full.arrive()
                if self.values_first:
                    yield from self.value_gradient(c, n)
                if b:
                    yield from self.query_sum(r, n - 1, t)
                if b + 1 < blocks:
                    yield from self.scores(c, n + 1, t)
                if self.values_first:
                    self.both("dout_empty", n % c.dout_stages)
                else:
                    yield from self.value_gradient(c, n)
                if b:
                    yield from self.add(r, 0, w, n - 1)
                self.set_due(r, 0, w, n)
                self.both("query_empty", n % c.query_stages)
                n += 1
            if blocks:
                yield from self.query_sum(r, n - 1, t)
                if not self.values_first:
                    self.both("dout_empty", (n - 1) % c.dout_stages)
                c.key_empty.arrive()
                yield from self.add(r, 0, w, n - 1)
            assert c.tile[t % 3][0] == t  # read when dV is stored
            t += 1

    def value_gradient(self, c, n):
        yield from self.waits(c.dout_full[n % c.dout_stages], n // c.dout_stages % 2)
        yield lambda: True
        assert c.dout[n % c.dout_stages] == [n, n]

    def scores(self, c, n, t):
        yield from self.waits(c.query_full[n % c.query_stages], n // c.query_stages % 2)
        yield lambda: True
        assert c.query[n % c.query_stages] == [n, n]
        assert c.key == t

    def differentiator(self, r, w):
        c, other = self.ctas[r], self.ctas[r ^ 1]
        n = t = 0
        while True:
            yield from self.waits(c.key_full, t % 2)
            if c.tile[t % 3] is None:
                self.set_due(r, 1, w, -1)
                return
            assert c.tile[t % 3][0] == t
            blocks = c.tile[t % 3][1]
            if not blocks:
                c.key_empty.arrive()
                c.value_empty.arrive()
            else:
                yield from self.waits(c.value_full, t % 2)
            for b in range(blocks):
                yield from self.waits(c.query_full[n % c.query_stages], n // c.query_stages % 2)
                yield lambda: True  # dK(n - 1)
                if b:
                    assert c.query[(n - 1) % c.query_stages] == [n - 1, n - 1]
                    self.both("query_empty", (n - 1) % c.query_stages)
                yield from self.waits(c.dout_full[n % c.dout_stages], n // c.dout_stages % 2)
                if b:
                    yield from self.query_sum(r, n - 1, t)
                assert c.dout[n % c.dout_stages] == [n, n]
                assert c.value == t
                self.both("dout_empty", n % c.dout_stages)
                yield from self.waits(c.weights_full, n % 2)
                assert c.weights[w] == n
                c.weights_empty.arrive()
                s = n % GRADIENT_STAGES
                yield from self.waits(c.gradient_empty[s], n // GRADIENT_STAGES % 2 ^ 1)
                c.gradient[s][r][w] = n
                c.gathered[1] += 1
                yield lambda n=n: c.gathered[1] >= 4 * (n + 1)
                if w == 0:
                    c.gradient_full[s].arrive(1)

                    def finish(s=s, n=n):
                        assert c.gradient[s][r] == [n] * 4
                        other.gradient[s][r] = [n] * 4
                        other.gradient_full[s].complete(1)

                    self.copies.append(finish)
                if b:
                    yield from self.add(r, 1, w, n - 1)
                self.set_due(r, 1, w, n)
                n += 1
            if blocks:
                c.value_empty.arrive()
                yield from self.query_sum(r, n - 1, t)
                assert c.query[(n - 1) % c.query_stages] == [n - 1, n - 1]
                self.both("query_empty", (n - 1) % c.query_stages)
                c.key_empty.arrive()
                yield from self.add(r, 1, w, n - 1)
            assert c.tile[t % 3][0] == t
            t += 1


if __name__ == "__main__":
    for seed in range(400):
        draw = random.Random(seed)
        tiles = [draw.choice([0, 1, 2, 3, 9]) for _ in range(draw.randrange(1, 5))]
        stages = draw.choice([(2, 1), (3, 2), (3, 3)])
        try:
            Run(tiles, *stages, seed % 2 == 1, seed).go()
        except AssertionError:
            print("tiles", tiles, "stages", stages, "seed", seed)
            raise
    print("400 runs: no deadlock, every read met what it wants")
