"""Reference decoders for masked diffusion models, greedy, one sequence, written for reading and not for speed.

    python decoders.py        # checks the selection rules and the block loop against worked cases

A pass is one forward. It judges slots (token and confidence), a rule picks some of them, and their tokens are committed at
once. Logits are f32, softmax is f64, confidences and thresholds are compared as f32. The mask token is never proposed:
its logit counts as minus infinity, so it is missing from the denominator too. Ties go to the smallest slot and token.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from reference import visibility

DREAM_EPS = 1e-3


# --- Selection: confidences by slot in, slots to commit out -----------------------------------------------------------


def cleaned(conf):
    """NaN counts as 0."""
    return {slot: 0.0 if math.isnan(c) else c for slot, c in conf.items()}


def ranking(conf):
    """Slots from the best to the worst, ties by index."""
    conf = cleaned(conf)
    return sorted(conf, key=lambda slot: (-conf[slot], slot))


def reaches(c, threshold):
    return np.float32(c) >= np.float32(threshold)


def exceeds(c, threshold):
    return np.float32(c) > np.float32(threshold)


def quota(conf, count):
    """The `count` best."""
    return set(ranking(conf)[:count])


def threshold(conf, kappa):
    """All that reach `kappa`, and the best in any case."""
    return quota(conf, 1) | {slot for slot, c in cleaned(conf).items() if reaches(c, kappa)}


def factor_bound(n, f):
    """What the `n`-th best (from 2) must reach under the rule `factor`."""
    return np.float32(1.0) - np.float32(f) / np.float32(n + 1)


def factor(conf, f):
    """The longest ranked prefix whose `n`-th member reaches `1 - f / (n + 1)`; the first is free."""
    conf = cleaned(conf)
    ranked = ranking(conf)
    count = 1
    while count < len(ranked) and reaches(conf[ranked[count]], factor_bound(count + 1, f)):
        count += 1
    return set(ranked[:count])


def local_leap(conf, kappa, tau, radius):
    """`threshold`, with `tau` in place of `kappa` up to `radius` slots from an anchor, that is from a slot that reaches
    `kappa`. `tau` None turns the relaxation off."""
    if tau is None:
        return threshold(conf, kappa)
    conf = cleaned(conf)
    anchors = [slot for slot, c in conf.items() if reaches(c, kappa)]
    chosen = quota(conf, 1)
    for slot, c in conf.items():
        is_near = any(abs(slot - anchor) <= radius for anchor in anchors)
        if reaches(c, tau if is_near else kappa):
            chosen.add(slot)
    return chosen


def dynamic(conf, bound, count):
    """All above `bound` if they are at least `count`, otherwise the `count` best."""
    above = {slot for slot, c in cleaned(conf).items() if exceeds(c, bound)}
    return above if len(above) >= count else quota(conf, count)


# --- Schedules: how many slots each step of the fixed quota commits -------------------------------------------------


def even(slots, steps):
    """Equal shares, the first steps one more if it does not divide. LLaDA counts the masks at the start of the block,
    SDAR and LLaDA2 all slots of a block, whether given or not (the decoder stops when no mask is left)."""
    return [slots // steps + (step < slots % steps) for step in range(steps)]


def dream(masks, steps, eps=DREAM_EPS):
    """Dream's grid: `steps + 1` times from 1 down to `eps`; `floor(m * (1 - s / t))` of `m` masks, all at the last step."""
    counts = []
    for step in range(steps):
        t, s = (1 - (1 - eps) * j / steps for j in (step, step + 1))
        share = masks * (1 - s / t)
        assert step == steps - 1 or abs(share - round(share)) > 1e-6, "the dtype would decide this floor"
        counts.append(masks if step == steps - 1 else math.floor(share))
        masks -= counts[-1]
    return counts


def linear(masks, steps):
    """A2D: the masks left over the steps left, rounded half to even."""
    counts = []
    for step in range(steps):
        counts.append(round(masks / (steps - step)))
        masks -= counts[-1]
    return counts


SCHEDULES = {"even": even, "even_block": even, "dream": dream, "linear": linear}


# --- Judging: one forward, a proposal for every slot of the block -----------------------------------------------------


@dataclass
class Proposal:
    token: int
    confidence: float  # Probability of the token.
    margin: float = 0.0  # Its distance to the second.
    entropy: float = 0.0  # Negative: sum of p log(p + 1e-10).
    gap: float = math.inf  # Distance of the two best logits.
    mask_was_best: bool = False

    def score(self, remasking):
        return {"low_confidence": self.confidence, "margin": self.margin, "entropy": self.entropy}[remasking]


def propose(row, mask_id):
    allowed = row.double().clone()
    allowed[mask_id] = -math.inf
    probabilities = allowed.softmax(-1)
    token = int(allowed.argmax())
    best, second = probabilities.topk(2).values.tolist()
    logits = allowed.topk(2).values
    entropy = (probabilities * (probabilities + 1e-10).log()).sum().item()
    return Proposal(token, best, best - second, entropy, (logits[0] - logits[1]).item(), int(row.argmax()) == mask_id)


class Judge:
    """Runs the model for a decoder."""

    def __init__(self, model, mask_id, prompt_len, cache="none", shift=None):
        self.model, self.mask_id, self.prompt_len, self.cache = model, mask_id, prompt_len, cache
        self.shift = model.shape.shift if shift is None else shift
        self.kept = None

    def __call__(self, canvas, start, end, is_first):
        """Proposals for the slots `[start, end)` of a block. `is_first`: nothing of this block was judged before."""
        shape, length = self.model.shape, len(canvas)
        # The row that scores the first slot must be fresh, too.
        first_row = max(start - 1, 0) if self.shift else start
        if shape.block is not None:
            length, rows = end, range(end)  # Later blocks are out of sight.
        elif self.cache == "none" or is_first:
            rows = range(length)
        elif self.cache == "prefix":
            rows = range(first_row, length)
        else:
            rows = range(first_row, end)
        if self.cache == "none" or is_first:
            self.kept = self.model.empty_cache(length)
        logits = self.model.forward(canvas[:length], rows, visibility(shape, length, self.prompt_len), self.kept)
        by_row = dict(zip(rows, logits))
        return {slot: propose(by_row[max(slot - 1, 0) if self.shift else slot], self.mask_id) for slot in range(start, end)}

    def next_token(self, canvas, start):
        """The proposal of the last row of the finished slots `[0, start)` for slot `start` (Fast-dLLM v2)."""
        logits = self.model.logits(canvas[:start], visibility(self.model.shape, start, self.prompt_len))
        return propose(logits[-1], self.mask_id)


# --- The loop ---------------------------------------------------------------------------------------------------------


@dataclass
class Plan:
    """How a canvas is filled."""

    policy: str
    gen_length: int
    block_length: int
    cache: str = "none"
    remasking: str = "low_confidence"
    schedule: str = "even"
    steps_per_block: int | None = None
    sub_block_length: int | None = None
    handover: bool = False
    threshold: float | None = None
    relaxed_threshold: float | None = None
    radius: int | None = None
    factor: float | None = None
    edit_threshold: float | None = None
    max_post_steps: int = 16


@dataclass
class Trace:
    """What a decoder did. `passes` and `edits` have one entry for each forward."""

    canvas: list
    passes: list = field(default_factory=list)
    edits: list = field(default_factory=list)
    counts: dict = field(default_factory=lambda: {"top": 0, "anchor": 0, "relaxed": 0})
    # For the goldens: how close the closest calls were, and what happened on the way.
    threshold_gap: float = math.inf
    rank_gap: float = math.inf
    token_gap: float = math.inf
    masks_excluded: int = 0
    fallbacks: int = 0
    longest_post: int = 0

    @property
    def nfe(self):
        return len(self.passes)

    def commit(self, chosen, proposals):
        for slot in chosen:
            self.canvas[slot] = proposals[slot].token
            self.token_gap = min(self.token_gap, proposals[slot].gap)
            self.masks_excluded += proposals[slot].mask_was_best
        self.passes.append(sorted(chosen))
        self.edits.append([])


def block_borders(plan, shape, prompt_len):
    """Blocks as `(start, end)`, the canvas' length. With full attention blocks are counted from the end of the prompt, and
    the last may be short; with block-causal attention they are the model's own and all whole."""
    end = prompt_len + plan.gen_length
    if shape is None or shape.block is None:
        return [(start, min(start + plan.block_length, end)) for start in range(prompt_len, end, plan.block_length)], end
    assert plan.block_length == shape.block
    origin = prompt_len % shape.block if shape.origin == "prompt_end" else 0
    first = origin + (prompt_len - origin) // shape.block * shape.block
    spans = [(start, start + shape.block) for start in range(first, end, shape.block)]
    return spans, spans[-1][1]


def decode(judge, shape, prompt, mask_id, plan):
    spans, length = block_borders(plan, shape, len(prompt))
    trace = Trace(list(prompt) + [mask_id] * (length - len(prompt)))
    frozen = len(prompt)  # A mask token in the prompt stays what it is.
    for start, end in spans:
        if plan.handover and start >= frozen and start > 0:
            trace.commit({start}, {start: judge.next_token(trace.canvas, start)})
        is_first = True
        sub = plan.sub_block_length or plan.block_length
        for low in range(start, end, sub):
            high = min(low + sub, end)
            fill(judge, trace, plan, mask_id, frozen, (start, end), (low, high), is_first)
            is_first = False
    assert mask_id not in trace.canvas[frozen:]
    return trace


def fill(judge, trace, plan, mask_id, frozen, block, part, is_first):
    """Decodes the slots `part` of a block to the end."""

    def masked():
        return [slot for slot in range(max(part[0], frozen), part[1]) if trace.canvas[slot] == mask_id]

    counts = step_counts(plan, len(masked()), part)
    step = post = 0
    while masked() or (plan.policy == "editing" and post < plan.max_post_steps):
        had_masks = bool(masked())
        if plan.policy == "quota":
            while counts[step] == 0:  # A step without commits needs no forward.
                step += 1
        count = min(counts[step], len(masked())) if had_masks and counts else 0
        filled = {slot for slot in range(max(part[0], frozen), part[1]) if trace.canvas[slot] != mask_id}
        proposals = judge(trace.canvas, *block, is_first)
        is_first = False
        chosen = choose(plan, {slot: proposals[slot] for slot in masked()}, count, trace) if had_masks else set()
        # Only what was filled before this forward may be edited.
        edited = pick_edits(plan, {slot: proposals[slot] for slot in filled}, trace) if plan.policy == "editing" else {}
        trace.commit(chosen, proposals)
        for slot, token in sorted(edited.items()):
            trace.canvas[slot] = token
            trace.edits[-1].append([slot, token])
        if not had_masks:
            post += 1
            trace.longest_post = max(trace.longest_post, post)
            if not edited:
                break
        step += 1


def step_counts(plan, masks, part):
    if plan.steps_per_block is None:
        return []
    slots = part[1] - part[0]
    steps = plan.steps_per_block * slots // plan.block_length
    return SCHEDULES[plan.schedule](slots if plan.schedule == "even_block" else masks, steps)


def choose(plan, proposals, count, trace):
    """Applies the rule, and notes in `trace` how close it was and which part of the rule committed what."""
    conf = {slot: proposal.score(plan.remasking) for slot, proposal in proposals.items()}
    ranked = ranking(conf)

    def note_threshold(bound, slots):
        trace.threshold_gap = min([trace.threshold_gap, *(abs(conf[slot] - float(bound)) for slot in slots)])

    def note_border(count):
        if 0 < count < len(ranked):
            trace.rank_gap = min(trace.rank_gap, conf[ranked[count - 1]] - conf[ranked[count]])

    if plan.policy == "quota":
        chosen = quota(conf, count)
        note_border(count)
    elif plan.policy in ("threshold", "local_leap"):
        chosen = local_leap(conf, plan.threshold, plan.relaxed_threshold, plan.radius)
        note_threshold(plan.threshold, ranked)
        if plan.relaxed_threshold is not None:
            note_threshold(plan.relaxed_threshold, ranked)
        if conf[ranked[0]] < plan.threshold:
            note_border(1)
            trace.fallbacks += 1
    elif plan.policy == "factor":
        chosen = factor(conf, plan.factor)
        for n in range(2, min(len(chosen) + 1, len(ranked)) + 1):
            note_threshold(factor_bound(n, plan.factor), [ranked[n - 1]])
        note_border(len(chosen))
    else:
        chosen = dynamic(conf, plan.threshold, count)
        note_threshold(plan.threshold, ranked)
        if sum(c > plan.threshold for c in conf.values()) < count:
            note_border(count)
            trace.fallbacks += 1

    for slot in chosen:
        if plan.threshold is not None and conf[slot] >= plan.threshold:
            trace.counts["anchor"] += 1
        elif plan.relaxed_threshold is not None and slot != ranked[0]:
            trace.counts["relaxed"] += 1
        else:
            trace.counts["top"] += 1
    return chosen


def pick_edits(plan, proposals, trace):
    """New tokens for filled slots whose best token is another one now, with a probability above the threshold."""
    edits = {}
    for slot, proposal in proposals.items():
        if proposal.confidence > plan.edit_threshold - 1e-3:
            trace.token_gap = min(trace.token_gap, proposal.gap)
        if proposal.token != trace.canvas[slot]:
            trace.threshold_gap = min(trace.threshold_gap, abs(proposal.confidence - plan.edit_threshold))
            if exceeds(proposal.confidence, plan.edit_threshold):
                edits[slot] = proposal.token
    return edits


# --- Self-test --------------------------------------------------------------------------------------------------------

CASE_3 = ".76 .80 .70 .92 .78 .74 .79 .91 .81 .77 .20 .76"
# Number, confidences from slot 0 on (`-`: no candidate), what is not (0.9, 0.75, 4), commits.
WORKED_CASES = [
    (1, ".62 .71 .88 .80 .55 .79 .40 .86", {}, {2}),
    (2, ".80 .76 .74 .95 .77 .60 .78 .75 .89 .85 .89 .30", {}, {0, 1, 3, 4, 6, 7}),
    (3, CASE_3, {"radius": 2}, {1, 3, 4, 6, 7, 8, 9}),
    (4, CASE_3, {"radius": 1}, {3, 4, 6, 7, 8}),
    (5, "- - - - .89 .77 .76 .93 - - - -", {}, {4, 5, 6, 7}),
    (6, "- - - - .80 .60 .70 .89 - - - -", {}, {7}),
    (7, ".95 .91 .99 .93", {}, {0, 1, 2, 3}),
    (8, ".875 .75 .75 .7499 .5 .75 .75", {"kappa": 0.875, "radius": 1}, {0, 1}),
    (9, ".60 .85 .85 .85", {}, {1}),
    (10, ".80 .95 .80 .90 .89", {"radius": 0}, {1, 3}),
    (11, ".80 .95 .80 .90 .89", {"tau": None}, {1, 3}),
    (12, ".92 .95 .97 .91", {"tau": 0.96, "radius": 1}, {2}),
    (13, ".92 .85 .97 .91", {"tau": 0.9}, {0, 2, 3}),
    (14, "- .96 - - .80 .80 - .76 .90", {"radius": 3}, {1, 4, 5, 7, 8}),
    (15, ".95 .80 .80 .80 .80 .80 .80 .80", {"radius": 2}, {0, 1, 2}),
    (16, ".99 .98 .97", {"kappa": 1.5}, {0}),
    (17, ".95 .01 .02 .03 .04 .05 .06", {"tau": 0.0, "radius": 3}, {0, 1, 2, 3}),
    (18, ".80 .74 .75 .91 .76 .10 .90 .77", {"radius": 10**9}, {0, 2, 3, 4, 6, 7}),
    (19, "- - .05 -", {}, {2}),
    (20, "- - - -", {}, set()),
    (21, "- - .78 - .91 .80 .50 .76", {}, {2, 4, 5, 7}),
    (22, "- - - - .91 .80 .50 .76", {}, {4, 5, 7}),
    (23, ".80 NaN .95 .76", {}, {0, 2, 3}),
    (24, "NaN NaN", {}, {0}),
]


class Mock:
    """Confidence of slot `P + j` is `min(99, base[j] + 2 n)` percent, `n` slots being filled."""

    BASE = [70, 88, 93, 77, 60, 79, 91, 74, 50, 64, 66, 80, 62, 72, 58, 69]
    PROMPT, MASK = [1, 1, 1], 0

    def __call__(self, canvas, start, end, is_first):
        filled = sum(token != self.MASK for token in canvas[3:])
        return {slot: Proposal(7, min(99, self.BASE[slot - 3] + 2 * filled) / 100) for slot in range(start, end)}


def self_test():
    for number, text, other, expected in WORKED_CASES:
        conf = {slot: float(c) for slot, c in enumerate(text.split()) if c != "-"}
        found = local_leap(conf, **{"kappa": 0.9, "tau": 0.75, "radius": 4} | other)
        assert found == expected, f"case {number}: {sorted(found)}, expected {sorted(expected)}"
    # Case 25: rows of a batch are independent; here a row is a call.
    rows = [{s: float(c) for s, c in enumerate(WORKED_CASES[i][1].split())} for i in (0, 6)]
    assert [local_leap(row, 0.9, 0.75, 4) for row in rows] == [{2}, {0, 1, 2, 3}]

    def trace(**plan):
        plan = Plan(**{"gen_length": 16, "block_length": 8, "threshold": 0.9} | plan)
        return decode(Mock(), None, Mock.PROMPT, Mock.MASK, plan).passes

    leap = {"policy": "local_leap", "relaxed_threshold": 0.75, "radius": 2}
    assert trace(**leap) == [[4, 5, 6, 8, 9], [10], [3], [7], [12, 13, 14, 15, 16], [17, 18], [11]]
    # With an end token at position 9 or 4 the text is complete when everything up to there is: after 4 or 3 forwards.
    done = {slot: n for n, slots in enumerate(trace(**leap), 1) for slot in slots}
    assert [max(done[slot] for slot in range(3, end + 1)) for end in (9, 4)] == [4, 3]
    assert trace(policy="threshold") == [[5, 9], *([n] for n in (4, 8, 6, 10, 3, 7, 14, 16, 18, 13, 12, 15, 17, 11))]
    assert trace(**leap, block_length=16) == [[4, 5, 6, 8, 9], [13, 14, 16], [10, 12], [3], [17, 18], [15], [7], [11]]
    assert [len(trace(policy="quota", steps_per_block=n)) for n in (8, 4)] == [16, 8]

    assert factor({0: 0.9, 1: 0.7, 2: 0.7, 3: 0.9}, 1.0) == {0, 3}  # 0.9 >= 2/3, 0.7 < 3/4
    assert factor({0: 0.1, 1: 0.7, 2: 0.76, 3: 0.9}, 1.0) == {2, 3}
    assert factor({0: 0.8, 1: 0.8, 2: 0.8}, 1.0) == {0, 1, 2}
    assert dynamic({0: 0.85, 1: 0.86, 2: 0.3}, 0.85, 1) == {1}
    assert dynamic({0: 0.85, 1: 0.86, 2: 0.3}, 0.85, 2) == {0, 1}
    assert even(8, 3) == [3, 3, 2] and linear(8, 3) == [3, 2, 3] and even(2, 4) == [1, 1, 0, 0]
    assert dream(16, 16) == [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2] and sum(dream(16, 5)) == 16
    print("worked cases 1 to 25, loop traces, factor, dynamic and schedules: all as expected")


if __name__ == "__main__":
    self_test()
