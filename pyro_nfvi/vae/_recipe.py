"""Numbers of the flow VAE, each with its unit and its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NetworkRecipe:
    """Numbers of encoders and decoders."""

    #: Size of the latent vector, as in van den Berg et al. 2018, arXiv:1803.05649.
    latent_dim: int = 40
    #: Widths of the dense nets: those of Tomczak and Welling 2018, arXiv:1705.07120.
    hidden: tuple[int, ...] = (300, 300)
    #: Hidden units of the convolutional nets, residual ones too, between convolutions and heads.
    conv_width: int = 256
    #: Numbers that stand for a category where an encoder looks them up.
    embedding: int = 8
    #: Channels of the residual nets at full size, at half and at a quarter.
    resnet_channels: tuple[int, int, int] = (16, 32, 32)
    #: Residual blocks at each of these.
    resnet_blocks: int = 2
    #: Hidden units of the nets between two layers of latents, and size of the lower one's context.
    between_layers: int = 100
    #: Least standard deviation that an encoder gives.
    min_scale: float = 1e-4
    #: Bound of a log standard deviation that a decoder gives, in nats.
    log_scale: float = 5.0
    #: Bound of the logarithm of a mean count, and of that of its dispersion: counts of millions.
    log_rate: float = 15.0


@dataclass(frozen=True)
class DataRecipe:
    """Numbers of reading and preparing images."""

    #: Seed with which the peers binarise validation and test images, one after the other.
    peer_seed: int = 777
    #: Images of the embedded digits that validate, and as many that test.
    digits_held_out: int = 250
    #: Distance of a logit-normal's pixels from 0 and 1 (Rezende and Mohamed).
    logit_margin: float = 1e-4
    #: Classes from which on labels are numbers of something, nothing to condition on.
    most_classes: int = 10_000
    #: Bytes in which an array's header ends.
    header_bytes: int = 65_536
    #: Arrays of a file that a message lists.
    listed_arrays: int = 12
    #: Grey levels of a byte.
    byte_levels: int = 256
    #: Largest integer pixel up to which images count as having few levels; beyond it, a byte's.
    few_levels: int = 16
    #: Distance of 255 times a fraction from an integer, of which images of bytes are no more: below
    #: dark images in steps of 1/256, and above what rounding does.
    level_rounding: float = 1e-3
    #: The same in half precision, which rounds by 0.06 of a level.
    half_rounding: float = 0.1


@dataclass(frozen=True)
class EvaluationRecipe:
    """Numbers of the evaluation of a trained VAE."""

    #: Variance over images of a coordinate's posterior mean above which it is active (Burda et al.
    #: 2016, arXiv:1509.00519).
    active_variance: float = 0.01
    #: Draws of each image by which active coordinates are found.
    active_draws: int = 32
    #: Draws of each image by which its posterior mean is found, to a tenth of its deviation.
    latent_draws: int = 100
    #: Share of active coordinates below which a posterior has collapsed.
    collapsed_share: float = 0.1
    #: Nats of KL divergence below which a posterior has collapsed.
    collapsed_kl: float = 0.1
    #: Importance samples of each image, where no number is given (Burda et al.'s 5000).
    nll_samples: int = 5000
    #: Images at a time.
    rows: int = 500
    #: Rows of noise that are drawn at once: the numbers do not depend on the cut of tiles.
    noise_block: int = 256
    #: Numbers in the largest tensor of a tile on a processor: 16 MiB of float32, of which a few are
    #: alive at once.
    tile_cpu: int = 2**22
    #: The same on an accelerator: 256 MiB.
    tile_accelerator: int = 2**26
    #: Rows of a tile, at most: more save nothing.
    tile_rows: int = 65_536
    #: The same of a negative log likelihood on a processor, whose cache they fit.
    nll_rows_cpu: int = 4096
    #: Share of images with too large a k-hat above which an NLL is no number to compare models by.
    doubtful_share: float = 0.1
    #: Label of the stream of noise of the ELBO.
    elbo_stream: int = 101
    #: Label of that of active units.
    units_stream: int = 102
    #: Label of that of a subset.
    subset_stream: int = 103
    #: Label of that of posterior means.
    latent_stream: int = 104


@dataclass(frozen=True)
class AnnealingRecipe:
    """Numbers of annealed importance sampling."""

    #: Chains of each image, where no number is given: k-hat needs a tail to look at.
    chains: int = 128
    #: Temperatures between posterior and model, where no number is given.
    temperatures: int = 100
    #: Leapfrog steps of a transition.
    leapfrogs: int = 4
    #: Chains of the run that finds step sizes.
    pilot_chains: int = 16
    #: Temperatures of that run, at most.
    pilot_temperatures: int = 60
    #: Rate of acceptance that it looks for: between the best for steps of one (0.57) and of many
    #: (0.65) dimensions and a safe distance.
    acceptance: float = 0.7
    #: Change of a log step size by a rate of acceptance that is off by one.
    gain: float = 1.0
    #: Share of evenly spaced temperatures.
    even_share: float = 0.1
    #: Log weight that counts for one that is lower, where their spread is measured.
    least_log_weight: float = -1e6
    #: Parts of a tile of draws without gradients that one with gradients has.
    tile_share: int = 4


@dataclass(frozen=True)
class PosteriorPictureRecipe:
    """Numbers of the picture of posteriors in two dimensions."""

    #: Masses inside the contours.
    masses: tuple[float, ...] = (0.5, 0.9, 0.99)
    #: Operations that a picture may cost: some twenty seconds of one core.
    work: float = 4e11
    #: Operations that a scored number counts for: exponentials and passes through memory.
    per_number: float = 100.0
    #: Points on a side of the square in which posteriors are looked for.
    wide_points: int = 64
    #: Points on a side of any square, at least.
    least_points: int = 16
    #: Points on a side of the square around one posterior.
    close_points: int = 24
    #: Half the side of the wide square, at least: the prior has nothing beyond.
    prior_reach: float = 4.0
    #: Mass that a panel has to hold.
    inside: float = 0.995
    #: Share of draws on each side that a panel may leave out.
    tail: float = 0.01
    #: Draws of each posterior, by which it is found.
    draws: int = 400
    #: Side of the wide square, relative to the farthest draw.
    wide_margin: float = 1.1
    #: Cells that a panel reaches beyond the mass that it holds.
    margin_cells: float = 1.5
    #: Half the side of a panel, relative to what it shows.
    panel_half: float = 0.55


@dataclass(frozen=True)
class FigureRecipe:
    """Sizes of the VAE's figures: lengths in inches, letters in points."""

    #: Images in a row, and points of an interpolation.
    columns: int = 10
    #: Images that are reconstructed at the end of a run.
    reconstructions: int = 30
    #: Images between which it interpolates, two by two.
    interpolated: int = 12
    #: Images of which it draws posteriors, in two dimensions.
    posterior_images: int = 64
    #: Panels with one of them each.
    posterior_panels: int = 8
    #: Width of rows of images, and of a page's text.
    width: float = 7.0
    #: Height of a title above them.
    title: float = 0.35
    #: Least height of rows of images, which a title needs.
    least_height: float = 1.0
    #: Least range of pixel values that is stretched to all greys: below it, an image of one value.
    least_range: float = 1e-9
    #: Width and height of the two curves of a training.
    curves: tuple[float, float] = (5.6, 5.0)
    #: Room around a curve, as a share of its heights.
    curve_room: float = 0.05
    #: The same in nats, where all heights are alike.
    curve_nats: float = 0.1
    #: One of so many first lines of a log has no part in the height of the curves: the bound rises
    #: by thousands of nats there.
    early_lines: int = 10
    #: Panels in a row of posteriors.
    panel_columns: int = 4
    #: Width and height of a panel, with its axes.
    panel: tuple[float, float] = (2.1, 2.2)
    #: Room of a figure beside its panels, and above them.
    panel_room: tuple[float, float] = (0.3, 0.5)
    #: Letters at ticks, in a panel's title, and in that of the figure.
    letters: tuple[int, int, int] = (7, 8, 9)
    #: Width of a contour, in points.
    contour: float = 1.1
    #: Density that counts as none where its logarithm is taken: beyond all contours.
    no_density: float = 1e-30


@dataclass(frozen=True)
class TrainerRecipe:
    """Numbers of training runs."""

    #: Passes over the training images, at most.
    epochs: int = 50
    #: Images of a step, as in the papers.
    batch_size: int = 100
    #: Learning rate of Adam: twice that of Adamax in the papers, whose runs are far longer.
    rate: float = 1e-3
    #: Number that Adamax adds to its scale, as in the code of van den Berg et al.
    adamax_eps: float = 1e-7
    #: Norm to which a larger gradient is shortened, in nats by unit of the weights: many times that
    #: of usual steps, so that outliers alone are changed.
    clip_norm: float = 100.0
    #: Share of the run over which the weight of the KL divergence rises.
    warm_up: float = 0.2
    #: Share of each cycle in which it does, where warm-ups come in turn (Fu et al. 2019,
    #: arXiv:1903.10145).
    cycle_rise: float = 0.5
    #: Steps between checkpoints within an epoch.
    save_steps: int = 500
    #: Steps between two texts of the bar.
    bar_steps: int = 10
    #: Steps between two points of TensorBoard's curves.
    log_steps: int = 50
    #: Test images of which the NLL is estimated.
    nll_images: int = 500

    #: Steps that the early average of the weights reaches back, plus one (TensorFlow's).
    average_warm_up: int = 10
    #: Images of a validation batch.
    valid_rows: int = 500
    #: Seconds after which a lock file that was just written holds its owner.
    lock_moment: float = 0.2


NETWORKS = NetworkRecipe()
DATA = DataRecipe()
EVALUATION = EvaluationRecipe()
ANNEALING = AnnealingRecipe()
POSTERIOR_PICTURE = PosteriorPictureRecipe()
FIGURES = FigureRecipe()
TRAINER = TrainerRecipe()
