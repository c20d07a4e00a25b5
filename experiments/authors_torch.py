"""The authors' released code of a method on arrays: a worker of `authors_code.py`, run by a Python
that has PyTorch.

Their files are used from a checkout, as they are: run_turtle.py whole; of TEMI the loss, heads,
schedules and parameter groups; of SCAN the loss. What is around them here (batches, optimiser, a
random neighbour) follows their training scripts, which ask for a GPU and for images.
"""

import argparse
import importlib.util
import pathlib
import sys
import tempfile
import time
import types

import numpy as np
import torch
from torch import nn


def parse_arguments() -> argparse.Namespace:
    """The command line, which `authors_code.py` makes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("method", choices=sorted(METHODS))
    parser.add_argument("--repository", type=pathlib.Path, required=True)
    parser.add_argument("--arrays", type=pathlib.Path, required=True, help="folder")
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--starts", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True, help="outer steps, or passes")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    return parser.parse_args()


def module(repository: pathlib.Path, path: str) -> types.ModuleType:
    """A file of the checkout as a module."""
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, repository / path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"error: {repository / path} is not there")
    # Their files import each other as scripts of one folder.
    if str(repository) not in sys.path:
        sys.path.insert(0, str(repository))
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def load(options: argparse.Namespace, name: str) -> np.ndarray:
    """An array that `authors_code.py` wrote."""
    return np.load(options.arrays / f"{name}.npy")


def count_spaces(options: argparse.Namespace) -> int:
    """How many spaces `authors_code.py` wrote."""
    return len(list(options.arrays.glob("space*_train.npy")))


Found = dict[str, np.ndarray]  # labels "test" (S, n), "score" (S,), and what else there is


def turtle_warm(options: argparse.Namespace) -> Found:
    """From warm starts, and where each of them began: v, length and b of an encoder, w and c of a
    model, in each space. What follows from there has nothing random where a batch is all rows."""
    dims = [load(options, f"space{i}_test").shape[1] for i in range(count_spaces(options))]
    script = module(options.repository, "run_turtle.py")
    begun: dict[str, list[np.ndarray]] = {}
    for start in range(options.starts):
        # As the script begins, in the same order.
        script.seed_everything(options.seed + start)
        encoders = [nn.utils.weight_norm(nn.Linear(dim, options.classes)) for dim in dims]
        models = [nn.Linear(dim, options.classes) for dim in dims]
        for i, (encoder, model) in enumerate(zip(encoders, models, strict=True)):
            values = {
                "v": encoder.weight_v.T, "length": encoder.weight_g[:, 0], "b": encoder.bias,
                "w": model.weight.T, "c": model.bias,
            }  # fmt: skip
            for name, value in values.items():
                begun.setdefault(f"{name}{i}", []).append(value.detach().numpy().copy())
    return {
        **turtle(options, "--warm_start"),
        **{name: np.stack(values) for name, values in begun.items()},
    }


def turtle(options: argparse.Namespace, *more: str) -> Found:
    """run_turtle.py as a whole, a process of steps for each start; `more` flags of it."""
    # The two names stand for any two spaces: the script takes none but those that it knows.
    phis = ["clipvitL14", "dinov2"][: count_spaces(options)]
    script = module(options.repository, "run_turtle.py")
    script.datasets_to_c["ours"] = options.classes
    spaces = [load(options, f"space{i}_test") for i in range(len(phis))]
    labels, scores = [], []
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        (root / "labels").mkdir()
        # It prints an accuracy while it runs; no label is given to it.
        np.save(root / "labels" / "ours_val.npy", np.zeros(len(spaces[0]), np.int64))
        for i, phi in enumerate(phis):
            (root / "representations" / phi).mkdir(parents=True)
            for split, theirs in (("train", "train"), ("test", "val")):
                np.save(
                    root / "representations" / phi / f"ours_{theirs}.npy",
                    load(options, f"space{i}_{split}"),
                )
        for start in range(options.starts):
            seed = options.seed + start
            asked = ["--dataset=ours", "--phis", *phis, f"--T={options.steps}", f"--seed={seed}"]
            script.run([*asked, *more, "--device=cpu", f"--root_dir={root}"])
            (path,) = root.glob(f"task_checkpoints/**/*_seed{seed}.pt")
            heads = torch.load(path, weights_only=True)
            found = [
                torch.softmax(nn.functional.linear(torch.from_numpy(x), h["weight"], h["bias"]), 1)
                for x, h in zip(spaces, heads.values(), strict=True)
            ]
            labels.append(sum(found).argmax(1).numpy())
            # The script keeps no loss to choose starts by.
            scores.append(0.0)
    return {"test": np.stack(labels), "score": np.array(scores)}


def temi(options: argparse.Namespace) -> Found:
    """Loss, heads and schedules of the repository; the values of its README's command."""
    heads = module(options.repository, "model_builders/multi_head.py").MultiHeadClassifier
    import losses  # type: ignore[import-not-found]
    import utils  # type: ignore[import-not-found]

    x = torch.from_numpy(load(options, "space0_train"))
    near = torch.from_numpy(load(options, "neighbours")).long()
    batch, passes = min(1024, len(x)), options.steps
    torch.manual_seed(options.seed)
    student, teacher = (
        heads(
            "precomputed", x.shape[1], options.classes, nlayers=2, hidden_dim=512,
            bottleneck_dim=256, num_heads=options.starts,
        )
        for _ in range(2)
    )  # fmt: skip
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    loss = losses.TEMI(
        beta=0.6, out_dim=options.classes, batchsize=batch, warmup_teacher_temp=0.1,
        teacher_temp=0.1, warmup_teacher_temp_epochs=min(30, passes), nepochs=passes,
        num_heads=options.starts,
    )  # fmt: skip
    optimiser = torch.optim.AdamW(utils.get_params_groups(student.head))
    steps = len(x) // batch
    rate = 1e-4 * batch / 256
    rates = utils.cosine_scheduler(rate, rate, passes, steps, warmup_epochs=min(20, passes // 2))
    for i in range(passes):
        order = torch.randperm(len(x))
        sums = torch.zeros(options.starts)
        for j in range(steps):
            rows = order[j * batch : (j + 1) * batch]
            drawn = near[rows, torch.randint(near.shape[1], (batch,))]
            for k, group in enumerate(optimiser.param_groups):
                group["lr"] = rates[i * steps + j]
                if k == 0:
                    group["weight_decay"] = 1e-4
            views = torch.cat([x[rows], x[drawn]])
            with torch.no_grad():
                fixed = as_list(teacher(views))
            each = loss(as_list(student(views)), fixed, epoch=i)
            optimiser.zero_grad()
            each.mean().backward()
            utils.cancel_gradients_last_layer(i, student, 1)
            optimiser.step()
            with torch.no_grad():
                for own, follows in zip(student.parameters(), teacher.parameters(), strict=True):
                    follows.mul_(0.996).add_(0.004 * own)
            sums += each.detach()
        print(f"pass {i + 1}/{passes}, loss {float(sums.mean()) / steps:.4f}", flush=True)
    test = torch.from_numpy(load(options, "space0_test"))
    with torch.no_grad():
        found = as_list(teacher(test))
    labels = np.stack([z.argmax(1).numpy() for z in found])
    return {"test": labels, "score": (sums / steps).numpy()}


def as_list(found: torch.Tensor | list[torch.Tensor]) -> list[torch.Tensor]:
    """Their heads return a list, and one head what it found."""
    return found if isinstance(found, list) else [found]


def scan(options: argparse.Namespace) -> Found:
    """The loss of the repository on linear heads, with its settings of ImageNet-50."""
    loss = module(options.repository, "losses/losses.py").SCANLoss(entropy_weight=5.0)
    x = torch.from_numpy(load(options, "space0_train"))
    near = torch.from_numpy(load(options, "neighbours")).long()
    torch.manual_seed(options.seed)
    heads = nn.ModuleList(nn.Linear(x.shape[1], options.classes) for _ in range(options.starts))
    optimiser = torch.optim.SGD(heads.parameters(), lr=5.0, momentum=0.9, nesterov=False)
    batch = min(512, len(x))
    for i in range(options.steps):
        order = torch.randperm(len(x))
        for j in range(len(x) // batch):
            rows = order[j * batch : (j + 1) * batch]
            drawn = near[rows, torch.randint(near.shape[1], (batch,))]
            own, other = x[rows], x[drawn]
            total = torch.stack([loss(head(own), head(other))[0] for head in heads])
            optimiser.zero_grad()
            total.sum().backward()
            optimiser.step()
        print(f"pass {i + 1}/{options.steps}, loss {float(total.mean()):.4f}", flush=True)
    test = torch.from_numpy(load(options, "space0_test"))
    with torch.no_grad():
        # All rows and one neighbour of each, the nearest.
        scores = [float(loss(head(x), head(x[near[:, 0]]))[0]) for head in heads]
        labels = np.stack([head(test).argmax(1).numpy() for head in heads])
    return {"test": labels, "score": np.array(scores)}


METHODS = {
    "turtle": turtle,
    "turtle_warm": turtle_warm,
    "temi": temi,
    "scan": scan,
}


def main() -> None:
    """Runs the method; writes labels of the test rows, scores, seconds, and what else it gave."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    began = time.perf_counter()
    found = METHODS[options.method](options)
    found["seconds"] = np.asarray(time.perf_counter() - began)
    np.savez_compressed(options.out, **found)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
