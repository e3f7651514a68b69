"""What a test set could show: the smallest differences of ACC and of AUC that a test finds with a given power."""

import math


def smallest_acc_difference(n: int, discordance: float, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest difference of two ACCs that McNemar's two-sided test finds with the given power.

    n items show a difference d at a discordance f (Connor 1987; Miettinen 1968) if
    n = (z_a sqrt(f) + z_b sqrt(f - d^2))^2 / d^2, with z_a the normal quantile of 1 - alpha / 2 and z_b that of power.
    This is a quadratic equation in d, whose larger root is
    d = sqrt(f) (z_a sqrt(n) + z_b sqrt(n + z_b^2 - z_a^2)) / (n + z_b^2).

    Args:
      n: number of independent test items.
      discordance: f, the fraction of items that exactly one of the two arms gets right.
      power: the probability to find the difference.
      alpha: the level of the test.

    Returns:
      The difference d, a fraction; NaN if even d = f, where one arm is right on all discordant items, is not found.
    """
    from scipy.special import ndtri

    if n < 1 or not 0 <= discordance <= 1:
        raise ValueError(f"{n} items with a discordance of {discordance}: expected 1 or more items, and 0 to 1")
    z_a, z_b = float(ndtri(1 - alpha / 2)), float(ndtri(power))
    inner = n + z_b**2 - z_a**2
    if inner < 0:
        return math.nan
    found = math.sqrt(discordance) * (z_a * math.sqrt(n) + z_b * math.sqrt(inner)) / (n + z_b**2)
    return found if 0 < found <= discordance else math.nan


def smallest_auc_difference(se: float, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest difference of two AUCs that a two-sided test finds with the given power: (z_a + z_b) SE.

    Args:
      se: the standard error of the difference, see `paired.delong_test`.
      power: the probability to find the difference.
      alpha: the level of the test.
    """
    from scipy.special import ndtri

    return float((ndtri(1 - alpha / 2) + ndtri(power)) * se)
