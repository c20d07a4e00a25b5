"""Every field of a config, with the values of the two presets.

A field that is `None` here is filled in from `presets.fast` or `presets.paper`, whichever `preset`
names; a value set in a config file or by a flag (`--config.search.steps=400`) wins over both.
"""

from collections.abc import Mapping
from pathlib import Path

from ml_collections import config_dict

from hume_jax.config import NUMBER, PATHS, PRIOR

_PAPER_ENCODERS = {"dino": "dinov2_vitg14", "clip": "clip_vit_l14", "bit": "bit_m_r50x1"}
# Variants of the configs of the paper's datasets, beside `setting` and `preset`.
PAPER_VARIANTS: dict[str, tuple[str, ...]] = {
    "phi2": tuple(_PAPER_ENCODERS),
    "data": ("authors", "images"),
    "files": (),
}


def get_config() -> config_dict.ConfigDict:
    """Returns the fields that all configs share."""
    config = config_dict.ConfigDict()

    # The settings that fill every open field: 'fast' (this project's) or 'paper' (the reference's).
    config.preset = "fast"
    # What is searched: 'inductive' the train rows, 'transductive' the train and test rows.
    config.setting = "inductive"
    # Number of classes to find; 'auto' = the one that the rows support best, if there is one, by
    # many searches first (docs/choose_k.md); 0 = must be given.
    config.n_classes = config_dict.FieldReference(0, field_type=NUMBER)
    # Shares of the rows that the classes are expected to hold: a tuple of n_classes positive
    # numbers (scaled to sum 1) in any order; 'estimate' where nobody knows them, see `prior`; () =
    # the same for all.
    config.class_prior = config_dict.FieldReference((), field_type=PRIOR)
    # Number of tasks, i.e. of searches from different random starts.
    config.n_tasks = config_dict.placeholder(int)
    # Tasks searched at a time; 0 = as many as fit in memory.
    config.task_batch = 0
    # Seed of every random number of the run.
    config.seed = 0
    # Several seeds, in its place: each is a run of its own with results in a folder `seed_N` of the
    # run's, and all are searched in one program; () = `seed` alone.
    config.seeds = ()

    # Images that arrays are made from where these are missing.
    config.images = _images()
    # The encoders that make them.
    config.encode = _encode()
    # The arrays: both spaces of each split, and labels for the scores.
    config.data = _data()
    presets = _presets()
    # The task encoder, whose soft labels are linear in a space (Eq. 3 of the paper).
    config.encoder = _open_fields(presets, "encoder")
    # The search for the task encoders whose labels a linear model generalises best on (Eq. 7).
    config.search = _open_fields(presets, "search")
    # The inner fit: that linear model, and the derivative through it (Eq. 5).
    config.inner = _open_fields(presets, "inner")
    # The label-free scores of what was found.
    config.score = _score()
    # The vote of the tasks.
    config.ensemble = _open_fields(presets, "ensemble")
    # Share of the tasks that vote, at least one; not where all of them do.
    config.ensemble.fraction = 0.5

    # Whether to run k-means and the supervised probe in each space beside the search.
    config.baselines = True
    # Whether to draw the plots.
    config.plots = True
    # Whether to draw report.html, the page on which a run can be looked at (hume_jax.report).
    config.report = True
    # Precision of the inner fit's products, and of its derivative's, on devices that have a faster,
    # coarser one: 'highest' (float32), 'high' or 'default'. The coarse ones lose no accuracy on
    # Imagenette and a hair of the hypergradient (docs/measurements.md).
    config.precision = "highest"
    # Several devices, and what they share.
    config.prior = _prior()
    config.mesh = _mesh()
    # Outer steps per line of metrics.jsonl; a compiled call may be shorter.
    config.log_every = 10
    # Least time between two checkpoints, in seconds.
    config.checkpoint_seconds = 20.0

    config.presets = presets
    return config.lock()


def use_paper_data(
    config: config_dict.ConfigDict,
    variant: Mapping[str, str],
    *,
    files: str,
    train: str,
    test: str,
    label: str = "",
) -> None:
    """Points the data fields at the authors' arrays, or the image fields at the dataset itself.

    The authors' archive, https://brbiclab.epfl.ch/wp-content/uploads/2023/11/data.zip, unpacks to a
    folder `data`. Without it here, the images are encoded by the published models that are nearest
    to theirs: MoCo v2 of ImageNet (theirs saw the dataset itself, without labels) and the model
    that the variant `phi2` names.

    Args:
      config: changed in place.
      variant: which of `PAPER_VARIANTS` are given.
      files: what the names of the authors' files start with, e.g. `cifar10`.
      train: images of the train split, e.g. `tfds:cifar10/train`.
      test: images of the test split.
      label: which labels of the images, where there are several.
    """
    phi2 = variant.get("phi2", "dino")
    here = Path("data/representations").is_dir() or "files" in variant
    if variant.get("data", "authors" if here else "images") == "images":
        config.images.train, config.images.test, config.images.label = train, test, label
        # The authors' arrays of MoCo are of unit norm, those of the others are not.
        config.encode.phi1 = "moco_v2_r50:unit_norm"
        config.encode.phi2 = _PAPER_ENCODERS[phi2]
        return
    files = variant.get("files", files)
    for split in ("train", "test"):
        fields = config.data[split]
        fields.phi1 = f"data/representations/mocov2/{files}{split}_l2.npy"
        fields.phi2 = f"data/representations/{phi2}/{files}{split}.npy"
        fields.labels = f"data/labels/{files}{split}_targets.npy"


def _prior() -> config_dict.ConfigDict:
    prior = config_dict.ConfigDict()
    # For class_prior='estimate'. Weight eta of the entropy term in the search that estimates first,
    # under a uniform prior: little, so that it holds classes to no size.
    prior.first_weight = 0.1
    # The weight in those that follow, under the sizes of the classes that the last one found; it
    # takes the place of search.entropy_weight.
    prior.weight = 1.0
    # Searches that estimate, one after the other.
    prior.rounds = 2
    # Tasks of each of them; no more than n_tasks.
    prior.tasks = 8
    return prior


def _mesh() -> config_dict.ConfigDict:
    mesh = config_dict.ConfigDict()
    # Devices that share the tasks of a batch; each has all rows, but for mesh.data. 0 = as many as
    # divide the tasks, so that with those of mesh.data the fewest stay idle.
    mesh.task = 0
    # Devices that share the rows; it must divide search.shards. 0 = those that mesh.task leaves, as
    # many as divide the shards.
    mesh.data = 0
    return mesh


def _data() -> config_dict.ConfigDict:
    data = config_dict.ConfigDict()
    for split in ("train", "test"):
        fields = data[split] = config_dict.ConfigDict()
        # The space that the labelling is linear in: an array of shape (n, d1), float16 or float32
        # (float64 is read as float32), rows in the dataset's order; an .npy file or one of the
        # other formats of docs/recipes.md. A tuple of files is joined column by column. A file that
        # is missing is made by the encoder of encode.phi1; '' = a file of encode.folder, if there
        # is an encoder.
        fields.phi1 = config_dict.FieldReference("", field_type=PATHS)
        # The space that the labelling must be separable in, (n, d2). With a tuple of files the
        # objective is averaged over them.
        fields.phi2 = config_dict.FieldReference("", field_type=PATHS)
        # True labels, (n,) integers or class names, for the scores alone; '' = none.
        fields.labels = ""
        # What the rows are, for the report and labels.csv alone: a .txt file with one line a row, a
        # .json list of texts, or images in the order of the rows (a folder, .tar or .zip); '' = not
        # known, or the images that the rows were encoded from.
        fields.samples = ""
    return data


def _images() -> config_dict.ConfigDict:
    images = config_dict.ConfigDict()
    # Images of each split: a folder, a .tar or .zip of one, or tfds:NAME/SPLIT; '' = none. Where an
    # array of `data` is missing, it is made from them.
    images.train, images.test = "", ""
    # Whether labels that come with the images (the names of class folders, a dataset's labels) are
    # kept, for the scores alone.
    images.labels = True
    # Which labels of a tfds dataset that has several, e.g. 'coarse_label'; '' = 'label'.
    images.label = ""
    # An image that cannot be read: 'fail' stops there, 'skip' gives its row zeros and notes it;
    # its label will be -1.
    images.broken = "fail"
    # Where prepared tfds datasets lie; '' = where tfds looks, ~/tensorflow_datasets.
    images.tfds_folder = ""
    return images


def _encode() -> config_dict.ConfigDict:
    encode = config_dict.ConfigDict()
    # Encoders that make phi1 and phi2, 'PRESET' or 'PRESET:option=value,...', e.g.
    # 'dinov2_vits14:weights=vits14.safetensors,size=98'; a tuple of them for several files, with ''
    # for a file of one's own that `data` names in its place; '' = none. `python -m hume_jax.encode
    # --list` names the presets.
    encode.phi1 = config_dict.FieldReference("", field_type=PATHS)
    encode.phi2 = config_dict.FieldReference("", field_type=PATHS)
    # Folder of the arrays that `data` gives no path for.
    encode.folder = "representations"
    # What they are stored as, 'float16' or 'float32'.
    encode.dtype = "float16"
    # Images at a time, on all devices of a host together.
    encode.batch = 64
    # Threads that read and decode images; 0 = as many as there are cores, at most 16.
    encode.threads = 0
    return encode


def _score() -> config_dict.ConfigDict:
    score = config_dict.ConfigDict()
    # Folds of the cross-validated accuracy, and splits of the held-out objective of a found task.
    score.folds = 5
    # Rows that both are computed on, drawn once for all tasks (fewer if the data has fewer).
    score.rows = 10000
    # Penalty lambda of these fits.
    score.penalty = 1e-4
    # Bound on the Newton steps of these fits.
    score.steps = 50
    # Norm of the inner gradient, in preconditioned coordinates, at which these fits stop.
    score.tolerance = 1e-4
    return score


def _presets() -> config_dict.ConfigDict:
    fast, paper = config_dict.ConfigDict(), config_dict.ConfigDict()
    for preset in (fast, paper):
        for section in ("encoder", "search", "inner", "ensemble"):
            preset[section] = config_dict.ConfigDict()

    fast.n_tasks, paper.n_tasks = 16, 100

    # Centre phi1 with the mean of the searched rows and scale each row to unit norm; the reference
    # takes phi1 as stored.
    fast.encoder.normalise, paper.encoder.normalise = True, False
    # Soft labels of a task, 'sparsemax' or 'softmax' of theta^T phi1 / T.
    fast.encoder.labels, paper.encoder.labels = "sparsemax", "sparsemax"
    # Their temperature T.
    fast.encoder.temperature, paper.encoder.temperature = 0.4, 0.1

    # Start of theta: 'random', any orthonormal matrix; 'rows' of phi1 that are far from each other
    # (k-means++), made orthonormal; 'clusters', what spherical k-means makes of such rows.
    fast.encoder.start, paper.encoder.start = "clusters", "random"
    # What Adam moves, element by element: the 'matrix' theta, whose orthonormal image then takes
    # its place, or its 'householder' coordinates in a random basis, as PyTorch in the reference.
    fast.encoder.coordinates, paper.encoder.coordinates = "matrix", "householder"

    # 'given': the task encoder is linear in phi1, the inner fit in phi2. 'both': the task encoder
    # is linear in all files of both, joined, and each of them has an inner fit, the objective is
    # their mean. 'first', 'second': phi1 or phi2 alone is on both sides, where the other is much
    # weaker: its own tasks agree clearly less (docs/recipes.md).
    fast.search.spaces, paper.search.spaces = "both", "given"
    # Outer steps.
    fast.search.steps, paper.search.steps = 80, 1000
    # Rows of the random subset that a step looks at, rounded down to equally many of each shard.
    fast.search.subset_size, paper.search.subset_size = 5000, 10000
    # Share of these rows that the inner fit sees; the held-out loss is taken on the others.
    fast.search.train_fraction, paper.search.train_fraction = 0.5, 0.9
    # Subsets whose gradients are averaged in one step.
    fast.search.subsets_per_step, paper.search.subsets_per_step = 1, 20
    # 'random': rows and split anew each time; 'folds': K-fold, as many splits in a row as there are
    # folds (2 at a share of 0.5, 10 at 0.9) share their rows, and each fold is held out once.
    fast.search.splits, paper.search.splits = "random", "random"
    # Learning rate of Adam.
    fast.search.learning_rate, paper.search.learning_rate = 0.1, 1e-3
    # Largest norm of a task's gradient.
    fast.search.clip, paper.search.clip = 1.0, 1.0
    # Steps at which the learning rate and the temperature are multiplied by the two factors below.
    fast.search.anneal_steps, paper.search.anneal_steps = (48, 64), (100, 200)
    # Factor of the learning rate.
    fast.search.anneal_learning_rate, paper.search.anneal_learning_rate = 0.1, 0.1
    # Factor of the temperature.
    fast.search.anneal_temperature, paper.search.anneal_temperature = 0.5, 0.1
    # Where the searched rows are read from: 'memory' (float32 copies), 'disk' (the files, each
    # step's rows alone) or 'auto' (memory if they fit well).
    fast.search.rows, paper.search.rows = "auto", "auto"
    # What numbers of rows in memory are stored as, 'float32' or 'bfloat16' (half the memory, three
    # digits); steps compute in float32 whatever it is. Rows read from disk stay as they are there.
    fast.search.storage, paper.search.storage = "float32", "float32"
    # Virtual shards that the rows belong to, whatever the number of devices; a subset takes equally
    # many rows from each. Rounded down to a power of two, fewer where rows are few. 1: any rows, as
    # in the reference.
    fast.search.shards, paper.search.shards = 64, 1
    # Weight eta of the entropy term.
    fast.search.entropy_weight, paper.search.entropy_weight = 5.0, 10.0

    # Centre phi2 and scale it to unit mean squared norm; the reference takes phi2 as stored.
    fast.inner.normalise, paper.inner.normalise = True, False
    # Solve in coordinates in which the problem is well conditioned.
    fast.inner.precondition, paper.inner.precondition = True, False
    # Leading principal directions of phi2 that are kept; 0 = all.
    fast.inner.directions, paper.inner.directions = 0, 0
    # Directions whose variance is below this many times lambda are left out, since the penalty
    # holds them down, but none of a hundredth of the widest; 0 = none. Not without preconditioning.
    fast.inner.variance_floor, paper.inner.variance_floor = 1.0, 0.0
    # Rows that mean, scale and directions of phi2 are taken from: where there are more, as many,
    # spread evenly over them.
    fast.inner.moment_rows, paper.inner.moment_rows = 1_000_000, 1_000_000
    # Penalty lambda on the squared norm of W.
    fast.inner.penalty, paper.inner.penalty = 1e-4, 0.0
    # Derivative of the fit: 'implicit' (one linear system), 'unrolled' (through the steps),
    # 'first_order' (none: W is taken as constant in theta).
    fast.inner.adjoint, paper.inner.adjoint = "implicit", "unrolled"
    # Steps of the fit: 'newton', 'nesterov' (accelerated gradient) or 'gradient' (plain).
    fast.inner.solver, paper.inner.solver = "newton", "gradient"
    # Number of these steps; with a tolerance, at first and at most.
    fast.inner.steps, paper.inner.steps = 8, 300
    # Conjugate gradient steps in each step of 'newton'.
    fast.inner.newton_steps, paper.inner.newton_steps = 3, 6
    # Conjugate gradient steps of the implicit derivative; with a tolerance, at first and at most.
    fast.inner.adjoint_steps, paper.inner.adjoint_steps = 16, 10
    # Residual, relative to the gradient of what is held out, that the fit and its implicit
    # derivative may leave (the latter in proportion less at temperatures below 0.5): the numbers of
    # steps follow what the last outer step left, on average over the tasks; 0 = they stay as given.
    # Not for 'unrolled'.
    fast.inner.tolerance, paper.inner.tolerance = 0.07, 0.0
    # Size of a step of 'nesterov' or 'gradient'; 0 = 2 / s with s the largest curvature of the
    # subset's problem.
    fast.inner.step_size, paper.inner.step_size = 0.0, 1e-3
    # Start of W: 'warm' (the last step's solution), 'cold' (zero), 'random' (anew for each subset,
    # uniform in +-1/sqrt(d2)), 'fixed' (one such draw, kept).
    fast.inner.start, paper.inner.start = "warm", "random"

    # Which tasks vote: those that agree most with the others ('agreement'), those best by
    # 'objective' or by 'cv_accuracy', or 'all'.
    fast.ensemble.select, paper.ensemble.select = "all", "all"
    # The vote: 'soft' gives each class of a task shares in several classes, estimated from the
    # other tasks, and evens out the classes under a uniform prior as far as search.entropy_weight
    # says; 'hard' is the majority.
    fast.ensemble.vote, paper.ensemble.vote = "soft", "hard"

    presets = config_dict.ConfigDict()
    presets.fast, presets.paper = fast, paper
    return presets


def _open_fields(presets: config_dict.ConfigDict, section: str) -> config_dict.ConfigDict:
    """Returns the section's fields, of the types that the presets give them, without a value."""
    fields = presets.fast[section]
    return config_dict.ConfigDict(
        {name: config_dict.placeholder(fields.get_type(name)) for name in fields}
    )
