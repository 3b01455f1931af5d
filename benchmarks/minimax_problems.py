"""Published minimax problems: a start, the losses as a function, and the optimum.

The source is Luksan and Vlcek (2000), "Test problems for nonsmooth unconstrained and
linearly constrained optimization", report V-798 of the Institute of Computer Science,
Prague.  The problems are those of section 2 (minimax), and those of section 3 in which
the function is the greatest of finitely many smooth ones.  Formulas, data and starts
are those of its Fortran collection, except that CB2 starts as in section 3.  An
absolute value |r| is written as two losses, r and -r.

A problem is included if SciPy's SLSQP on the epigraph form, from the same start and
restarted where it ended, reaches the published optimum to within one unit of the last
digit printed.  Left out are problems that fail this test (GAMMA and Watson, for which
SLSQP finds a lower value), that are not smooth at their optimum (SPIRAL), or that are
not bounded below (Colville1).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Problem(NamedTuple):
  """Minimise the greatest of the losses.

  Attributes:
    name: the problem's name in the report.
    start: `[n]`.
    losses_fn: parameters `[n]` -> losses `[K]`; exact only in float64.
    optimum: the published optimum.
  """

  name: str
  start: tuple[float, ...]
  losses_fn: Callable[[jax.Array], jax.Array]
  optimum: float


def _absolute(residuals: jax.Array) -> jax.Array:
  """The losses whose greatest is the greatest absolute residual."""
  return jnp.concatenate([residuals, -residuals])


def _penalised(value: jax.Array, violations: list[jax.Array]) -> jax.Array:
  """An exact penalty: the value, and the value plus ten times each violation."""
  return jnp.stack([value, *(value + 10 * violation for violation in violations)])


def _cb2(x):
  x1, x2 = x
  distance = (2 - x1) ** 2 + (2 - x2) ** 2
  return jnp.stack([x1**2 + x2**4, distance, 2 * jnp.exp(x2 - x1)])


def _cb3(x):
  x1, x2 = x
  distance = (2 - x1) ** 2 + (2 - x2) ** 2
  return jnp.stack([x1**4 + x2**2, distance, 2 * jnp.exp(x2 - x1)])


def _dem(x):
  x1, x2 = x
  return jnp.stack([5 * x1 + x2, -5 * x1 + x2, x1**2 + x2**2 + 4 * x2])


def _ql(x):
  x1, x2 = x
  return _penalised(x1**2 + x2**2, [4 - 4 * x1 - x2, 6 - x1 - 2 * x2])


def _lq(x):
  x1, x2 = x
  return jnp.stack([-x1 - x2, -x1 - x2 + x1**2 + x2**2 - 1])


def _mifflin1(x):
  x1, x2 = x
  return jnp.stack([-x1, -x1 + 20 * (x1**2 + x2**2 - 1)])


def _mifflin2(x):
  """2 c + 1.75 |c|, with the circle c, is the greater of 3.75 c and 0.25 c."""
  x1, x2 = x
  circle = x1**2 + x2**2 - 1
  return jnp.stack([-x1 + 3.75 * circle, -x1 + 0.25 * circle])


def _crescent(x):
  x1, x2 = x
  circle = x1**2 + (x2 - 1) ** 2 - 1
  return jnp.stack([x2 + circle, x2 - circle])


def _wf(x):
  x1, x2 = x
  ratio = 10 * x1 / (x1 + 0.1)
  return jnp.stack([x1 + ratio, -x1 + ratio, x1 - ratio]) / 2 + x2**2


def _evd52(x):
  x1, x2, x3 = x
  return jnp.stack(
    [
      x1**2 + x2**2 + x3**2 - 1,
      x1**2 + x2**2 + (x3 - 2) ** 2,
      x1 + x2 + x3 - 1,
      x1 + x2 - x3 + 1,
      2 * (x1**3 + 3 * x2**2 + (5 * x3 - x1 + 1) ** 2),
      x1**2 - 9 * x3,
    ]
  )


def _rosen_suzuki(x):
  x1, x2, x3, x4 = x
  value = x1**2 + x2**2 + 2 * x3**2 + x4**2 - 5 * x1 - 5 * x2 - 21 * x3 + 7 * x4
  return _penalised(
    value,
    [
      x1**2 + x2**2 + x3**2 + x4**2 + x1 - x2 + x3 - x4 - 8,
      x1**2 + 2 * x2**2 + x3**2 + 2 * x4**2 - x1 - x4 - 10,
      x1**2 + x2**2 + x3**2 + 2 * x1 - x2 - x4 - 5,
    ],
  )


def _polak6(x):
  """The Rosen-Suzuki problem in transformed coordinates."""
  x1, x2, x3, x4 = x
  bent = x1 - (x4 + 1) ** 4
  return _rosen_suzuki((bent, x2 - bent**4, x3, x4))


def _pbc3(x):
  times = np.linspace(0, 10, 21)
  waves = 3 * np.sin(2 * times) + 11 * np.cos(2 * times)
  data = 3 / 20 * np.exp(-times) + np.exp(-5 * times) / 52
  data -= np.exp(-2 * times) * waves / 65
  x1, x2, x3 = x
  return _absolute(x3 / x2 * jnp.exp(-x1 * times) * jnp.sin(x2 * times) - data)


_BARD = np.array([14, 18, 22, 25, 29, 32, 35, 39, 37, 58, 73, 96, 134, 210, 439]) / 100


def _bard(x):
  u = np.arange(1.0, 16)
  x1, x2, x3 = x
  return _absolute(x1 + u / ((16 - u) * x2 + np.minimum(u, 16 - u) * x3) - _BARD)


_KOWALIK_TIMES = np.array(
  [4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625]
)
_KOWALIK = np.array([1957, 1947, 1735, 1600, 844, 627, 456, 342, 323, 235, 246]) / 1e4


def _kowalik_osborne(x):
  times = _KOWALIK_TIMES
  x1, x2, x3, x4 = x
  model = x1 * (times**2 + x2 * times) / (times**2 + x3 * times + x4)
  return _absolute(model - _KOWALIK)


def _davidon2(x):
  """The losses are sums of squares, so no absolute values are needed."""
  times = np.arange(1, 21) / 5
  x1, x2, x3, x4 = x
  first = x1 + x2 * times - np.exp(times)
  return first**2 + (x3 + x4 * np.sin(times) - np.cos(times)) ** 2


def _oet5(x):
  times = np.linspace(0.25, 1, 21)
  x1, x2, x3, x4 = x
  return _absolute(x4 - (x1 * times**2 + x2 * times + x3) ** 2 - np.sqrt(times))


def _oet6(x):
  times = np.linspace(-0.5, 0.5, 21)
  x1, x2, x3, x4 = x
  model = x1 * jnp.exp(x3 * times) + x2 * jnp.exp(x4 * times)
  return _absolute(model - 1 / (1 + times))


def _exp(x):
  times = np.linspace(-1, 1, 21)
  x1, x2, x3, x4, x5 = x
  denominator = 1 + x3 * times + x4 * times**2 + x5 * times**3
  return _absolute((x1 + x2 * times) / denominator - np.exp(times))


def _pbc1(x):
  times = np.linspace(-1, 1, 30)
  data = np.sqrt((8 * times - 1) ** 2 + 1) * np.arctan(8 * times) / (8 * times)
  x1, x2, x3, x4, x5 = x
  numerator = x1 + x2 * times + x3 * times**2
  return _absolute(numerator / (1 + x4 * times + x5 * times**2) - data)


def _evd61(x):
  times = np.arange(51) / 10
  data = np.exp(-times) / 2 - np.exp(-2 * times) + np.exp(-3 * times) / 2
  data += 1.5 * np.exp(-1.5 * times) * np.sin(7 * times)
  data += np.exp(-2.5 * times) * np.sin(5 * times)
  x1, x2, x3, x4, x5, x6 = x
  wave = x1 * jnp.exp(-x2 * times) * jnp.cos(x3 * times + x4)
  return _absolute(wave + x5 * jnp.exp(-x6 * times) - data)


_TRANSFORMER = np.array([0.5, 0.6, 0.7, 0.77, 0.9, 1, 1.1, 1.23, 1.3, 1.4, 1.5])


def _transformer(x):
  """Reflection of three lines, lengths x1, x3, x5, between resistances 1 and 10."""
  voltage, current = 10 + 0j, 1 + 0j
  for length, impedance in ((x[4], x[5]), (x[2], x[3]), (x[0], x[1])):
    angles = np.pi / 2 * _TRANSFORMER * length
    cosines, sines = jnp.cos(angles), 1j * jnp.sin(angles)
    voltage, current = (
      cosines * voltage + impedance * sines * current,
      cosines * current + sines / impedance * voltage,
    )
  return jnp.abs((voltage - current) / (voltage + current))


_FILTER = np.concatenate(
  [
    np.arange(6) / 100,
    0.07 + 0.03 * np.arange(14),
    [0.5],
    0.54 + 0.03 * np.arange(14),
    0.95 + np.arange(6) / 100,
  ]
)


def _filter(x):
  cosines, sines = np.cos(np.pi * _FILTER), np.sin(np.pi * _FILTER)

  def amplitude(a, b):
    return jnp.sqrt((a + (1 + b) * cosines) ** 2 + ((1 - b) * sines) ** 2)

  numerator = amplitude(x[0], x[1]) * amplitude(x[4], x[5])
  denominator = amplitude(x[2], x[3]) * amplitude(x[6], x[7])
  return _absolute(x[8] * numerator / denominator - np.abs(1 - 2 * _FILTER))


def _wong1(x):
  x1, x2, x3, x4, x5, x6, x7 = x
  value = (x1 - 10) ** 2 + 5 * (x2 - 12) ** 2 + x3**4 + 3 * (x4 - 11) ** 2
  value += 10 * x5**6 + 7 * x6**2 + x7**4 - 4 * x6 * x7 - 10 * x6 - 8 * x7
  return _penalised(
    value,
    [
      2 * x1**2 + 3 * x2**4 + x3 + 4 * x4**2 + 5 * x5 - 127,
      7 * x1 + 3 * x2 + 10 * x3**2 + x4 - x5 - 282,
      23 * x1 + x2**2 + 6 * x6**2 - 8 * x7 - 196,
      4 * x1**2 + x2**2 - 3 * x1 * x2 + 2 * x3**2 + 5 * x6 - 11 * x7,
    ],
  )


def _wong2_terms(x):
  """The value and the violations."""
  x1, x2, x3, x4, x5, x6, x7, x8, x9, x10 = x
  value = x1**2 + x2**2 + x1 * x2 - 14 * x1 - 16 * x2 + (x3 - 10) ** 2
  value += 4 * (x4 - 5) ** 2 + (x5 - 3) ** 2 + 2 * (x6 - 1) ** 2 + 5 * x7**2
  value += 7 * (x8 - 11) ** 2 + 2 * (x9 - 10) ** 2 + (x10 - 7) ** 2 + 45
  return value, [
    3 * (x1 - 2) ** 2 + 4 * (x2 - 3) ** 2 + 2 * x3**2 - 7 * x4 - 120,
    5 * x1**2 + 8 * x2 + (x3 - 6) ** 2 - 2 * x4 - 40,
    (x1 - 8) ** 2 / 2 + 2 * (x2 - 4) ** 2 + 3 * x5**2 - x6 - 30,
    x1**2 + 2 * (x2 - 2) ** 2 - 2 * x1 * x2 + 14 * x5 - 6 * x6,
    4 * x1 + 5 * x2 - 3 * x7 + 9 * x8 - 105,
    10 * x1 - 8 * x2 - 17 * x7 + 2 * x8,
    -3 * x1 + 6 * x2 + 12 * (x9 - 8) ** 2 - 7 * x10,
    -8 * x1 + 2 * x2 + 5 * x9 - 2 * x10 - 12,
  ]


def _wong2(x):
  return _penalised(*_wong2_terms(x))


def _wong3(x):
  """Wong2 with ten more parameters and nine more violations."""
  value, violations = _wong2_terms(x[:10])
  x1, x2 = x[:2]
  x11, x12, x13, x14, x15, x16, x17, x18, x19, x20 = x[10:]
  value += (x11 - 9) ** 2 + 10 * (x12 - 1) ** 2 + 5 * (x13 - 7) ** 2
  value += 4 * (x14 - 14) ** 2 + 27 * (x15 - 1) ** 2 + x16**4 + (x17 - 2) ** 2
  value += 13 * (x18 - 2) ** 2 + (x19 - 3) ** 2 + x20**2 + 50
  return _penalised(
    value,
    [
      *violations,
      x1 + x2 + 4 * x11 - 21 * x12,
      x1**2 + 15 * x11 - 8 * x12 - 28,
      4 * x1 + 9 * x2 + 5 * x13**2 - 9 * x14 - 87,
      3 * x1 + 4 * x2 + 3 * (x13 - 6) ** 2 - 14 * x14 - 10,
      14 * x1**2 + 35 * x15 - 79 * x16 - 92,
      15 * x2**2 + 11 * x15 - 61 * x16 - 54,
      5 * x1**2 + 2 * x2 + 9 * x17**4 - x18 - 68,
      x1**2 - x2 + 19 * x19 - 20 * x20 + 19,
      7 * x1**2 + 5 * x2**2 + x19**2 - 30 * x20,
    ],
  )


def _polak2(x):
  weights = np.array([1e-8, 1, 1, 4, 1, 1, 1, 1, 1, 1])
  shift = 2 * np.eye(10)[1]
  plus = jnp.exp(jnp.sum(weights * (x + shift) ** 2))
  return jnp.stack([plus, jnp.exp(jnp.sum(weights * (x - shift) ** 2))])


def _polak3(x):
  """The weights are i + j + 1.

  Other collections have the inverse of this, and the optimum 3.70348.
  """
  i, j = np.arange(11.0), np.arange(10.0)[:, None]
  squares = (x - np.sin(j + 2 * i)) ** 2
  return jnp.sum((i + j + 1) * jnp.exp(squares), axis=1)


_OSBORNE2 = (
  np.array(
    [
      [1366, 1191, 1112, 1013, 991, 885, 831, 847, 786, 725, 746, 679, 608],
      [655, 616, 606, 602, 626, 651, 724, 649, 649, 694, 644, 624, 661],
      [612, 558, 553, 495, 500, 423, 395, 375, 372, 391, 396, 405, 428],
      [429, 523, 562, 607, 653, 672, 708, 633, 668, 645, 632, 591, 559],
      [597, 625, 739, 710, 729, 720, 636, 581, 428, 292, 162, 98, 54],
    ]
  ).ravel()
  / 1000
)


def _osborne2(x):
  times = np.arange(65)[:, None] / 10
  bells = jnp.exp(-x[5:8] * (times - x[8:11]) ** 2) @ x[1:4]
  return _absolute(x[0] * jnp.exp(-x[4] * times[:, 0]) + bells - _OSBORNE2)


_SHOR_CENTRES = np.array(
  [
    [0, 0, 0, 0, 0],
    [2, 1, 1, 1, 3],
    [1, 2, 1, 1, 2],
    [1, 4, 1, 2, 2],
    [3, 2, 1, 0, 1],
    [0, 2, 1, 0, 1],
    [1, 1, 1, 1, 1],
    [1, 0, 1, 2, 1],
    [0, 0, 2, 1, 0],
    [1, 1, 2, 0, 0],
  ]
)
_SHOR_WEIGHTS = np.array([1, 5, 10, 2, 4, 3, 1.7, 2.5, 6, 3.5])


def _shor(x):
  return _SHOR_WEIGHTS * jnp.sum((x - _SHOR_CENTRES) ** 2, axis=1)


def _maxquad_terms():
  """Matrices `[5, 10, 10]`, with dominant diagonals, and vectors `[5, 10]`."""
  i, j, k = np.arange(1.0, 11)[:, None], np.arange(1.0, 11), np.arange(1.0, 6)
  ratio = np.exp(np.minimum(i, j) / np.maximum(i, j)) * np.cos(i * j)
  matrices = ratio * np.sin(k)[:, None, None]
  matrices *= 1 - np.eye(10)
  diagonals = np.abs(np.sin(k))[:, None] * j / 10 + np.abs(matrices).sum(axis=2)
  matrices += diagonals[:, :, None] * np.eye(10)
  return matrices, np.exp(j / k[:, None]) * np.sin(k[:, None] * j)


def _maxquad(x):
  matrices, vectors = _maxquad_terms()
  return matrices @ x @ x - vectors @ x


def _gill(x):
  """A bowl, Watson's sum of squares, and Rosenbrock's."""
  bowl = jnp.sum((x - 1) ** 2) + 1e-3 * (jnp.sum(x**2) - 0.25) ** 2
  powers = np.vander(np.arange(1, 30) / 29, 10, increasing=True)
  slopes = powers[:, :-1] @ (np.arange(1.0, 10) * x[1:])
  watson = jnp.sum((slopes - (powers @ x) ** 2 - 1) ** 2)
  watson += x[0] ** 2 + (x[1] - x[0] ** 2 - 1) ** 2
  steps = 100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[1:]) ** 2
  return jnp.stack([bowl, watson, jnp.sum(steps)])


def _maxq(x):
  return x**2


def _goffin(x):
  return 50 * x - jnp.sum(x)


def _mxhilb(x):
  i = np.arange(50.0)
  return _absolute(1 / (i[:, None] + i + 1) @ x)


_WONG = (2.0, 3.0, 5.0, 5.0, 1.0, 2.0, 7.0, 3.0, 6.0, 10.0)
_WONG_MORE = (2.0, 2.0, 6.0, 15.0, 1.0, 2.0, 1.0, 2.0, 1.0, 3.0)
_OSBORNE2_START = (1.3, 0.65, 0.65, 0.7, 0.6, 3.0, 5.0, 7.0, 2.0, 4.5, 5.5)
_FILTER_START = (0.0, 1.0, 0.0, -0.15, 0.0, -0.68, 0.0, -0.72, 0.37)
_MAXQ_START = (*map(float, range(1, 11)), *map(float, range(-11, -21, -1)))
_GOFFIN_START = tuple(i - 24.5 for i in range(50))

PROBLEMS = (
  Problem("CB2", (1.0, -0.1), _cb2, 1.9522245),
  Problem("WF", (3.0, 1.0), _wf, 0.0),
  Problem("EVD52", (1.0, 1.0, 1.0), _evd52, 3.5997193),
  Problem("Rosen-Suzuki", (0.0,) * 4, _rosen_suzuki, -44.0),
  Problem("Polak6", (0.0,) * 4, _polak6, -44.0),
  Problem("PBC3", (1.0,) * 3, _pbc3, 0.42021427e-2),
  Problem("Bard", (1.0,) * 3, _bard, 0.50816327e-1),
  Problem(
    "Kowalik-Osborne", (0.25, 0.39, 0.415, 0.39), _kowalik_osborne, 0.80843684e-2
  ),
  Problem("Davidon2", (25.0, 5.0, -5.0, -1.0), _davidon2, 115.70644),
  Problem("OET5", (1.0,) * 4, _oet5, 0.26359735e-2),
  Problem("OET6", (1.0, 1.0, -3.0, -1.0), _oet6, 0.20160753e-2),
  Problem("EXP", (0.5, 0.0, 0.0, 0.0, 0.0), _exp, 0.12237125e-3),
  Problem("PBC1", (0.0, -1.0, 10.0, 1.0, 10.0), _pbc1, 0.22340496e-1),
  Problem("EVD61", (2.0, 2.0, 7.0, 0.0, -2.0, 1.0), _evd61, 0.34904926e-1),
  Problem("Transformer", (0.8, 1.5, 1.2, 3.0, 0.8, 6.0), _transformer, 0.19729063),
  Problem("Filter", _FILTER_START, _filter, 0.61852848e-2),
  Problem("Wong1", (1.0, 2.0, 0.0, 4.0, 0.0, 1.0, 1.0), _wong1, 680.63006),
  Problem("Wong2", _WONG, _wong2, 24.306209),
  Problem("Wong3", _WONG + _WONG_MORE, _wong3, 133.72828),
  Problem("Polak2", (100.0,) + (0.1,) * 9, _polak2, 54.598150),
  Problem("Polak3", (1.0,) * 11, _polak3, 261.08258),
  Problem("Osborne2", _OSBORNE2_START, _osborne2, 0.48027401e-1),
  Problem("Crescent", (-1.5, 2.0), _crescent, 0.0),
  Problem("CB3", (2.0, 2.0), _cb3, 2.0),
  Problem("DEM", (1.0, 1.0), _dem, -3.0),
  Problem("QL", (-1.0, 5.0), _ql, 7.2),
  Problem("LQ", (-0.5, -0.5), _lq, -1.4142136),
  Problem("Mifflin1", (0.8, 0.6), _mifflin1, -1.0),
  Problem("Mifflin2", (-1.0, -1.0), _mifflin2, -1.0),
  Problem("Shor", (0.0, 0.0, 0.0, 0.0, 1.0), _shor, 22.600162),
  Problem("Maxquad", (1.0,) * 10, _maxquad, -0.8414083),
  Problem("Gill", (-0.1,) * 10, _gill, 9.7857721),
  Problem("Maxq", _MAXQ_START, _maxq, 0.0),
  Problem("Maxl", _MAXQ_START, _absolute, 0.0),
  Problem("Goffin", _GOFFIN_START, _goffin, 0.0),
  Problem("MXHILB", (1.0,) * 50, _mxhilb, 0.0),
)
