"""PyTorch's random state, moved on as far as the original's constructor moves it, without drawing the numbers.

The original initializes a model before it loads one, some 200 million numbers for a ViT-B/32. A program that sets a
seed, loads, and then initializes parts of its own finds other numbers behind a `load` that draws none. Drawing them
takes longer than loading; the generator's jump takes a tenth of a second.
"""

from functools import cache, reduce
from itertools import pairwise

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

# functions that fill a tensor with random numbers, one draw of 32 bits for each
_DRAWING = {"kaiming_uniform_", "normal_", "randn", "uniform_", "xavier_uniform_"}
_FEW = 2**20  # so many are drawn: that is as fast
_STATE = slice(24, 24 + 624 * 8)  # where torch.get_rng_state() holds the words of the generator, 64 bits each

# MT19937 (Matsumoto and Nishimura, 1998): 624 words of 32 bits, the next made from three of the last 624
_WORDS, _MIDDLE = 624, 397
_UPPER, _LOWER, _TWIST = (np.uint32(value) for value in (0x80000000, 0x7FFFFFFF, 0x9908B0DF))
_DEGREE = 19937
# exponents of its characteristic polynomial over GF(2)
# fmt: off
_EXPONENTS = [
    0, 1189, 1416, 1585, 1643, 1870, 2493, 2773, 3000, 3227, 3454, 3681, 3908, 4135, 4362, 4753, 5661, 6337, 6569,
    7129, 7477, 7525, 7583, 7752, 7979, 8206, 9505, 9901, 9969, 10128, 10693, 10761, 10920, 11089, 11147, 11157,
    11215, 11321, 11374, 11384, 11485, 11611, 11712, 11717, 11838, 11881, 11944, 11997, 12277, 12335, 12393,
    12504, 12509, 12620, 12673, 12731, 12736, 12789, 12905, 12958, 12963, 13137, 13185, 13190, 13243, 13301,
    13412, 13528, 13533, 13639, 13697, 13760, 13813, 13866, 14093, 14151, 14209, 14320, 14325, 14436, 14547,
    14552, 14605, 14721, 14774, 14779, 14953, 15001, 15006, 15059, 15117, 15228, 15344, 15349, 15455, 15513,
    15576, 15629, 15682, 15909, 15967, 16025, 16136, 16141, 16252, 16363, 16368, 16421, 16537, 16590, 16595,
    16817, 16822, 16875, 16933, 17044, 17160, 17271, 17329, 17445, 17498, 17725, 17783, 17841, 17952, 18068,
    18179, 18237, 18406, 18633, 18691, 18860, 19087, 19314, 19937,
]
# fmt: on


class CountedDraws(TorchFunctionMode):
    """Count the random numbers that the modules built under it would have drawn, were they not on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") in _DRAWING:
            # normal numbers are made 16 at a time, and a rest is made of 16 further draws
            is_normal = function.__name__ in ("normal_", "randn")
            self.count += result.numel() + (16 if is_normal and result.numel() % 16 else 0)
        return result


def skip_draws(count: int) -> None:
    """Move the default generator on as `count` draws of 32 bits do."""
    twists, rest = divmod(count, _WORDS) if count > _FEW else (0, count)
    if twists:
        state = torch.get_rng_state()
        words = state[_STATE].view(torch.int64)
        # the position within the 624 words stays, and the words are those of so many refills later
        words.copy_(torch.from_numpy(_jump(words.numpy().astype(np.uint32), twists).astype(np.int64)))
        torch.set_rng_state(state)
    torch.empty(rest, device="cpu").uniform_()


def _jump(words: np.ndarray, twists: int) -> np.ndarray:
    """Return the words after `twists` refills: sums (XOR) of those words that a polynomial chooses.

    With g = x^n modulo the characteristic polynomial, word n + i is the sum of the words k + i of all terms k of g.
    """
    following = _following(words, _DEGREE + 1)
    # from word 1 on: of word 0 only the upper bit belongs to the state
    return reduce(np.bitwise_xor, (following[k + 1 : k + 1 + _WORDS] for k in _power_of_x(_WORDS * twists - 1)))


def _following(words: np.ndarray, count: int) -> np.ndarray:
    """Return the 624 words and the next `count` of the sequence."""
    x = np.concatenate([words, np.empty(count, np.uint32)])
    step = _WORDS - _MIDDLE  # as many as can be made at a time
    for start, end in pairwise([*range(0, count, step), count]):
        bits = (x[start:end] & _UPPER) | (x[start + 1 : end + 1] & _LOWER)
        odd = np.where(bits & 1, _TWIST, np.uint32(0))
        x[start + _WORDS : end + _WORDS] = x[start + _MIDDLE : end + _MIDDLE] ^ (bits >> 1) ^ odd
    return x


@cache
def _power_of_x(exponent: int) -> np.ndarray:
    """Return the exponents of x^exponent modulo the characteristic polynomial; polynomials are the bits of integers."""
    characteristic = sum(1 << k for k in _EXPONENTS)
    power = 1
    for bit in f"{exponent:b}":
        power = _of_bits(np.stack([bits := _bits(power), np.zeros_like(bits)], axis=1).ravel()) << int(bit)  # square
        while (excess := power.bit_length() - 1 - _DEGREE) >= 0:
            power ^= characteristic << excess
    return np.flatnonzero(_bits(power))


def _bits(polynomial: int) -> np.ndarray:
    content = np.frombuffer(polynomial.to_bytes(polynomial.bit_length() // 8 + 1, "little"), np.uint8)
    return np.unpackbits(content, bitorder="little")


def _of_bits(bits: np.ndarray) -> int:
    return int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")


__all__ = ["CountedDraws", "skip_draws"]
