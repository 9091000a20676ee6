"""Draws of a fit beside a reference, in numbers."""

import torch


def compare(draws, reference, labels=("fit", "reference")):
    """Print mean and sd of every number beside the reference's; return the worst errors.

    Args:
        draws: ``{site: (S, *shape)}``.
        reference: Likewise, or ``{site: (mean, sd)}`` where these are known.
        labels: What to call the two.

    Returns:
        Largest error of a mean, in sds of the reference, and of an sd, as a ratio minus 1.
    """
    print(f"{'':14}{labels[0]:>11} mean, sd{labels[1]:>12} mean, sd")
    worst_mean = worst_sd = 0.0
    for site, other in reference.items():
        value = draws[site].flatten(1).double() if draws[site].ndim > 1 else draws[site][:, None]
        if isinstance(other, tuple):
            mean, sd = (torch.as_tensor(part).reshape(-1).double() for part in other)
        else:
            other = other.reshape(len(other), -1).double()
            mean, sd = other.mean(0), other.std(0)
        for i in range(value.shape[1]):
            got = value[:, i].mean(), value[:, i].std()
            worst_mean = max(worst_mean, float((got[0] - mean[i]).abs() / sd[i]))
            worst_sd = max(worst_sd, float((got[1] / sd[i] - 1).abs()))
            name = f"{site}[{i}]" if value.shape[1] > 1 else site
            if i < 6:
                print(f"{name:14}{got[0]:>11.3f}{got[1]:>9.3f}{mean[i]:>12.3f}{sd[i]:>9.3f}")
        if value.shape[1] > 6:
            print(f"{'':14}  ... and {value.shape[1] - 6} more")
    print(f"worst error of a mean: {worst_mean:.3f} sds; of an sd: {100 * worst_sd:.1f} %")
    return worst_mean, worst_sd


def tell(fit, *, trust=False):
    """Print the verdict with its reasons, and how long the fit took.

    Args:
        fit: The fit.
        trust: Stop where the verdict is "do not trust"; without a reference to compare with,
            there is nothing else to go by.
    """
    print(f"verdict: {fit.verdict} ({'; '.join(fit.verdict.reasons)})")
    print(f"{len(fit.losses)} steps, {fit.timing.total:.0f} s, engine {fit.engine}")
    if trust and fit.verdict == "do not trust":
        raise SystemExit(f"The fit is not to be trusted. {fit.verdict.next_step}")
