"""Makes the golden file that `preset=paper` is compared with, by running the authors' own code.

    git clone https://github.com/mlbio-epfl/hume ~/hume
    pip install torch numpy scipy scikit-learn tqdm
    python experiments/paper_parity.py --reference=$HOME/hume --out=tests/golden/paper_parity.npz

`hume.py` of the checkout runs unchanged, on generated data, for one outer iteration and one subset;
it is only watched. Written down are what it drew (orthonormal matrix, subset, start of the inner
model), its objective (Eq. 7) before the update, and the gradient that `backward` left on the
orthonormal matrix, before PyTorch carries it on to its Householder coordinates. The run is ended
where the update of the task encoder would begin; one more goes on for a few iterations, whose
updates are written down.

learn2learn, which the authors' inner loop uses, does not build on current Python. Without it
`TwoCallMaml` stands in for the two calls that are needed; with it installed it is used. Needs
neither jax nor hume_jax. `tests/core/test_paper_parity.py` reads the file.

Content of the file (float32 and int32 arrays and one JSON string, readable without pickle; n rows,
d1 and d2 columns, K classes):

    phi1 (n, d1), phi2 (n, d2)      the data; rows of phi1 have unit norm
    meta                            JSON: the reference's default settings and those of the cases,
                                    its commit, versions
    sparsemax/{z,p,cotangent,vjp}   (m, K); input, output, cotangent of p and what it becomes at z
    CASE/q (d1, K)                  task encoder, orthonormal columns
    CASE/train, CASE/test           row numbers of the subset
    CASE/w0 (K, d2), CASE/b0 (K,)   start of the inner model
    CASE/labels (n_train + n_test, K)  soft labels, train rows first
    CASE/inner_ce (steps,)          train cross-entropy before each inner step
    CASE/heldout_ce, CASE/loss ()   held-out cross-entropy; that minus H_reg times the entropy
    CASE/gradient (d1, K)           of the loss with respect to q
    updates/basis (d1, d1)          that of a run's Householder coordinates
    updates/q (m + 1, d1, K)        its task encoders, before and after each of m updates
    updates/gradient (m, d1, K)     gradients by which they were updated, with respect to q
"""

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import pathlib
import platform
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

try:
    import torch
    from torch import nn
except ModuleNotFoundError as error:
    if "--help" not in sys.argv:
        sys.exit(f"error: {error}: pip install torch numpy scipy scikit-learn tqdm")
    print(__doc__)
    sys.exit(0)

N_ROWS, D1, D2, N_CLASSES, SUBSET = 450, 64, 48, 5, 400
USED_FILES = ("hume.py", "activations.py", "argparser.py")
# At a change of support sparsemax has no derivative, and rounding would decide which side is taken.
SMALLEST_MARGIN = 1e-4

# The settings of the small sets, and those of ImageNet-1k: larger steps from one fixed start.
SMALL = {"inner_lr": 1e-3, "adaptation_steps": 300, "train_fraction": 0.9, "rand_init": True}
LARGE = {"inner_lr": 0.1, "adaptation_steps": 100, "train_fraction": 0.7, "rand_init": False}
CASES: dict[str, dict[str, Any]] = {
    "small": SMALL | {"tau": 0.1, "H_reg": 10.0, "seed": 1},
    "imagenet": LARGE | {"tau": 0.1, "H_reg": 10.0, "seed": 2},
    "small_annealed": SMALL | {"tau": 0.01, "H_reg": 10.0, "seed": 3},
    "imagenet_annealed": LARGE | {"tau": 0.01, "H_reg": 10.0, "seed": 14},
    # Without the entropy, all of the gradient comes through the held-out cross-entropy.
    "small_no_entropy": SMALL | {"tau": 0.1, "H_reg": 0.0, "seed": 5},
    "imagenet_no_entropy": LARGE | {"tau": 0.1, "H_reg": 0.0, "seed": 6},
}
# The run whose updates are written down, by large steps.
UPDATES: dict[str, Any] = SMALL | {"tau": 0.1, "H_reg": 10.0, "seed": 7, "outer_lr": 0.1}
N_UPDATES = 12


class TwoCallMaml(nn.Module):
    """Stand-in for `learn2learn.algorithms.MAML`: `clone`, and `adapt` by a differentiable step."""

    def __init__(self, module: nn.Module, lr: float) -> None:
        super().__init__()
        self.module = module
        self.lr = lr
        self.fast: dict[str, torch.Tensor] = dict(module.named_parameters())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(self.module, self.fast, (x,))

    def reset_parameters(self) -> None:
        """Draws the start of the inner model anew."""
        self.module.reset_parameters()

    def clone(self) -> "TwoCallMaml":
        """A copy that takes its steps without changing the original."""
        copy = TwoCallMaml(self.module, self.lr)
        copy.fast = {name: value.clone() for name, value in self.fast.items()}
        return copy

    def adapt(self, loss: torch.Tensor) -> None:
        """One gradient step on ``loss`` that a later `backward` passes through."""
        gradients = torch.autograd.grad(loss, list(self.fast.values()), create_graph=True)
        pairs = zip(self.fast.items(), gradients, strict=True)
        self.fast = {name: value - self.lr * g for (name, value), g in pairs}


def load_reference(checkout: pathlib.Path) -> tuple[types.ModuleType, types.ModuleType, str]:
    """Imports the checkout's `hume` and `activations`; the string says whose MAML is used."""
    try:
        import learn2learn

        maml = f"learn2learn {learn2learn.__version__}"
    except ImportError:
        stand_in = types.ModuleType("learn2learn")
        stand_in.algorithms = types.SimpleNamespace(MAML=TwoCallMaml)  # type: ignore[attr-defined]
        sys.modules["learn2learn"] = stand_in
        maml = "stand-in"
    sys.path.insert(0, str(checkout))
    return importlib.import_module("hume"), importlib.import_module("activations"), maml


# --------------------------------------------------------------------------- watching hume.py


class _UpdateReached(Exception):
    """Ends the authors' `run` where an update would begin."""


class Watch:
    """What the authors' code drew and computed, filled in while it runs."""

    def __init__(self) -> None:
        self.bases: list[torch.Tensor] = []
        self.encoders: list[torch.Tensor] = []
        self.labels: list[torch.Tensor] = []
        self.subsets: list[np.ndarray] = []
        self.starts: list[list[np.ndarray]] = []
        self.cross_entropies: list[float] = []
        self.losses: list[float] = []


@contextlib.contextmanager
def watching(hume: types.ModuleType, updates: int) -> Iterator[Watch]:
    """Wraps the library functions that `hume.run` calls; none of them changes what it returns.

    The run ends where the update after `updates` of them would begin.
    """
    watch = Watch()
    parametrised = nn.utils.parametrize.ParametrizationList

    def on_forward(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        if isinstance(module, parametrised):
            if output.requires_grad:
                output.retain_grad()
            watch.encoders.append(output)
            watch.bases.append(module[0].base)
        elif isinstance(module, hume.Sparsemax):
            watch.labels.append(output.detach())

    def seen(function: Callable[..., Any], note: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            note(result, *args)
            return result

        return wrapper

    clip = nn.utils.clip_grad_norm_

    def update(*args: Any) -> Any:
        if len(watch.losses) > updates:
            raise _UpdateReached
        return clip(*args)

    def note_start(_: nn.Module, inner: nn.Module) -> None:
        watch.starts.append([p.detach().numpy().copy() for p in inner.parameters()])

    maml = hume.l2l.algorithms.MAML
    wrappers: list[tuple[Any, str, Callable[..., Any]]] = [
        (np.random, "choice", lambda drawn, *_: watch.subsets.append(drawn)),
        (maml, "clone", note_start),
        (hume.F, "cross_entropy", lambda ce, *_: watch.cross_entropies.append(ce.item())),
        (torch.Tensor, "backward", lambda _, loss: watch.losses.append(loss.item())),
    ]
    hook = nn.modules.module.register_module_forward_hook(on_forward)
    with contextlib.ExitStack() as stack:
        stack.callback(hook.remove)
        for owner, name, note in wrappers:
            stack.enter_context(mock.patch.object(owner, name, seen(getattr(owner, name), note)))
        stack.enter_context(mock.patch.object(nn.utils, "clip_grad_norm_", update))
        yield watch


def run(
    hume: types.ModuleType,
    phi1: np.ndarray,
    phi2: np.ndarray,
    settings: dict[str, Any],
    updates: int = 0,
) -> Watch:
    """Runs the authors' `run` on one subset an iteration, up to the update after `updates`."""
    with tempfile.TemporaryDirectory() as folder:
        labels = np.arange(len(phi1)) % N_CLASSES  # read by `run`, of no effect on the search
        flags = ["--device=cpu", f"--exp_path={folder}/", f"--k={N_CLASSES}"]
        flags += [f"--num_iters={updates + 1}", "--num_subsets=1", f"--subset_size={SUBSET}"]
        for name, array in {"phi1": phi1, "phi2": phi2, "gt_labels": labels}.items():
            np.save(f"{folder}/{name}.npy", array)
            flags.append(f"--{name}_path={folder}/{name}.npy")
        flags += [f"--{name}={value}" for name, value in settings.items() if name != "rand_init"]
        flags += [] if settings["rand_init"] else ["--no_rand_init"]
        silent = io.StringIO()
        with (
            watching(hume, updates) as watch,
            contextlib.redirect_stdout(silent),
            contextlib.redirect_stderr(silent),
            contextlib.suppress(_UpdateReached),
        ):
            hume.run(flags)
    return watch


def updates_of(watch: Watch) -> dict[str, np.ndarray]:
    """The task encoders of a run of several updates, and their gradients."""
    # Two evaluations of the encoder in each iteration, of the train rows and of the test rows.
    seen = [encoder for encoder in watch.encoders if encoder.grad is not None]
    if len(seen) != 2 * (N_UPDATES + 1):
        raise SystemExit(f"error: the reference took {len(seen) // 2 - 1} updates of {N_UPDATES}")
    q = np.stack([encoder.detach().numpy().T for encoder in seen[::2]])
    gradients = np.stack([encoder.grad.numpy().T for encoder in seen])
    summed = gradients[::2] + gradients[1::2]
    return {"basis": watch.bases[0].numpy(), "q": q, "gradient": summed[:-1]}


def arrays_of(watch: Watch, settings: dict[str, Any]) -> dict[str, np.ndarray]:
    """What was seen, under the names of the golden file.

    Raises:
      SystemExit: if `hume.py` did not call what it calls in the commit this was written for.
    """
    # One evaluation of the task encoder for the train rows and one for the test rows.
    gradients = [encoder.grad for encoder in watch.encoders if encoder.grad is not None]
    counts = [len(x) for x in (gradients, watch.labels, watch.subsets, watch.starts, watch.losses)]
    if counts != [2, 2, 1, 1, 1]:
        raise SystemExit(f"error: the reference does not run as expected (calls seen: {counts})")
    n_train = int(SUBSET * settings["train_fraction"])
    w0, b0 = watch.starts[0]
    return {
        "q": watch.encoders[-1].detach().numpy().T,
        "train": watch.subsets[0][:n_train].astype(np.int32),
        "test": watch.subsets[0][n_train:].astype(np.int32),
        "w0": w0,
        "b0": b0,
        "labels": torch.cat(watch.labels).numpy(),
        "inner_ce": np.asarray(watch.cross_entropies[:-1], np.float32),
        "heldout_ce": np.asarray(watch.cross_entropies[-1], np.float32),
        "loss": np.asarray(watch.losses[0], np.float32),
        "gradient": (gradients[0] + gradients[1]).numpy().T,
    }


# --------------------------------------------------------------------------- data and checks


def make_data(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Clustered rows in two spaces: ``(n, d1)`` of unit norm and ``(n, d2)`` of norm about 3.

    The norm matters: with rows of unit norm 300 steps of 1e-3 hardly move the inner model, and the
    part of the gradient that passes through them would be lost beside the rest.
    """
    rng = np.random.default_rng(seed)
    classes = rng.integers(N_CLASSES, size=N_ROWS)
    spaces = []
    for width in (D1, D2):
        centres = rng.normal(size=(N_CLASSES, width)) + 0.5 * rng.normal(size=width)
        spaces.append(centres[classes] + 0.8 * rng.normal(size=(N_ROWS, width)))
    phi1 = spaces[0] / np.linalg.norm(spaces[0], axis=1, keepdims=True)
    phi2 = 3 * spaces[1] / np.linalg.norm(spaces[1], axis=1).mean()
    return phi1.astype(np.float32), phi2.astype(np.float32)


def sparsemax_arrays(activations: types.ModuleType, seed: int = 0) -> dict[str, np.ndarray]:
    """The authors' sparsemax over rows of very different scale, and its backward pass."""
    rng = np.random.default_rng(seed)
    scale = np.repeat([0.1, 1.0, 10.0, 100.0], 16)[:, None]
    z = torch.tensor(rng.normal(size=(64, N_CLASSES)) * scale, dtype=torch.float32)
    cotangent = torch.tensor(rng.normal(size=z.shape), dtype=torch.float32)
    z.requires_grad_()
    p = activations.Sparsemax(dim=1)(z)
    (vjp,) = torch.autograd.grad(p, z, cotangent)
    named = {"z": z.detach(), "p": p.detach(), "cotangent": cotangent, "vjp": vjp}
    return {name: tensor.numpy() for name, tensor in named.items()}


def margin(case: dict[str, np.ndarray], phi1: np.ndarray, temperature: float) -> float:
    """Smallest distance of a score from the threshold of its row's sparsemax, in float64."""
    rows = np.concatenate([case["train"], case["test"]])
    z = phi1[rows].astype(np.float64) @ case["q"] / temperature
    falling = -np.sort(-z, axis=1)
    candidates = (np.cumsum(falling, axis=1) - 1) / np.arange(1, z.shape[1] + 1)
    return float(np.abs(z - candidates.max(axis=1, keepdims=True)).min())


def check(case: dict[str, np.ndarray], name: str, distance: float) -> None:
    """Refuses a case that rounding could decide, or that is not what it should be."""
    if not all(np.isfinite(array).all() for array in case.values()):
        raise SystemExit(f"error: case {name}: not finite")
    if np.abs(case["q"].T @ case["q"] - np.eye(N_CLASSES)).max() > 1e-5:
        raise SystemExit(f"error: case {name}: q is not orthonormal")
    if distance < SMALLEST_MARGIN:
        raise SystemExit(
            f"error: case {name}: a score is {distance:.1e} from a change of sparsemax's support, "
            f"less than {SMALLEST_MARGIN:.0e}; give the case another seed"
        )


def commit_of(checkout: pathlib.Path) -> str:
    """The commit checked out.

    Raises:
      SystemExit: if it is no git checkout or a file that is run here was changed.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        if git("status", "--porcelain", "--", *USED_FILES):
            raise SystemExit(f"error: --reference={checkout}: changed files; use a clean checkout")
        return git("rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"error: --reference={checkout}: not a git checkout") from error


def write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a compressed npz of plain arrays; refuses anything that would need pickle."""
    if any(array.dtype.hasobject for array in arrays.values()):
        raise SystemExit("error: an array holds Python objects")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def main(arguments: list[str]) -> None:
    """Runs every case and writes the golden file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reference", type=pathlib.Path, required=True, help="authors' checkout")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="golden file to write")
    options = parser.parse_args(arguments)
    missing = [name for name in USED_FILES if not (options.reference / name).is_file()]
    if missing:
        raise SystemExit(f"error: --reference={options.reference}: no {', '.join(missing)} in it")
    commit = commit_of(options.reference)

    torch.set_num_threads(1)
    hume, activations, maml = load_reference(options.reference)
    phi1, phi2 = make_data()
    arrays = {"phi1": phi1, "phi2": phi2}
    arrays |= {f"sparsemax/{key}": value for key, value in sparsemax_arrays(activations).items()}
    margins = {}
    for name, settings in CASES.items():
        case = arrays_of(run(hume, phi1, phi2, settings), settings)
        margins[name] = margin(case, phi1, settings["tau"])
        check(case, name, margins[name])
        arrays |= {f"{name}/{key}": value for key, value in case.items()}
        print(
            f"{name}: loss {case['loss']:.6f}, held-out CE {case['heldout_ce']:.6f}, "
            f"gradient norm {np.linalg.norm(case['gradient']):.6f}, margin {margins[name]:.1e}"
        )
    updates = updates_of(run(hume, phi1, phi2, UPDATES, N_UPDATES))
    arrays |= {f"updates/{key}": value for key, value in updates.items()}
    paths = [f"--{name}=" for name in ("phi1_path", "phi2_path", "gt_labels_path")]
    digests = {
        name: hashlib.sha256((options.reference / name).read_bytes()).hexdigest()
        for name in USED_FILES
    }
    meta = {
        "reference": {"repository": "mlbio-epfl/hume", "commit": commit, "sha256": digests},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "maml": maml,
        },
        "defaults": vars(hume.parse_args(paths)),
        "cases": {name: CASES[name] | {"margin": margins[name]} for name in CASES},
        "updates": UPDATES,
    }
    arrays["meta"] = np.asarray(json.dumps(meta, sort_keys=True))
    write(options.out, arrays)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes, commit {commit}, MAML: {maml}")


if __name__ == "__main__":
    main(sys.argv[1:])
