"""Every bad command line of a table is answered with one sentence, status 1, and nothing written."""

import shlex

import jax
import numpy as np
import pytest
from flax import nnx

from rnn_jax import tasks
from rnn_jax.training import checkpoints, run_directory
from rnn_jax.training.build import ModelSettings, make_model
from rnn_jax.training.load import save_interface
from tests.experiments import bad_command_lines as table
from tests.experiments.refusals import answers
from tests.tasks.test_images import folder_of_images

LONGEST = 500


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with files, series and runs for the command lines, and with cells of the user."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "file").write_text("a file")
    (folder / "empty").mkdir()
    (folder / "x.ts").mkdir()
    (folder / "bytes.csv").write_bytes(b"text,label\n\xff\xfe,a\n")
    (folder / "one_class.csv").write_text("text,label\nsome words,a\nothers,a\n")
    rows = [f"{'a b c'[: 2 * (k % 3) + 1]},{k % 2}\n" for k in range(60)]
    (folder / "texts.csv").write_text("text,label\n" + "".join(rows))
    (folder / "vectors.txt").write_text("a 1 2\nb 3 4\n")
    (folder / "large.txt").write_text("a 1e39 2\nb 3 4\n")
    (folder / "long.txt").write_text("the carry goes on and on; " * 40)
    (folder / "pairs.tsv").write_text("".join(f"{a} {b}\t{b} {a}\n" for a in "abcdef" for b in "abcdef"))
    for name, (low, high, test) in {
        "close": (1.0, 1.0 + 2**-52, 1.0), "far": (0.0, 1.0, 1e300), "overflow": (-1e308, 1.7e308, 0.0)
    }.items():  # fmt: skip
        for split, xs in (("train", [[low, high], [high, low]] * 4), ("test", [[test, test]] * 2)):
            (folder / name / split).mkdir(parents=True)
            np.save(folder / name / split / "xs.npy", np.array(xs) * (1e-170 if name == "close" else 1))
            np.save(folder / name / split / "labels.npy", np.array([0, 1] * (len(xs) // 2)))
    (folder / "bad_cells.py").write_text(table.BAD_CELLS)
    (folder / "bad_import.py").write_text("raise RuntimeError('\\x1b[31mred\\u202e')\n")
    (folder / "bad_syntax.py").write_text("class\n")
    (folder / "bad_exit.py").write_text("raise SystemExit(7)\n")
    write_run(folder / "stream", f"text:{folder / 'long.txt'}", seq_len=4)
    write_run(folder / "sequence", f"pairs:{folder / 'pairs.tsv'}", tokens="character")
    (folder / "pictures").mkdir()
    write_run(folder / "images", f"images:{folder_of_images(folder / 'pictures', 12)}", image_size=8)
    write_finished_run(folder / "finished")
    return folder


def write_run(out, name, **options):
    """Writes a run as `experiments.train` leaves it after its first evaluation, of a model whose weights are all 0."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        task = tasks.make_task(name, **options)
        flags = {"task": name, "cell": "elman", "hidden": 2, "emb_size": 2, "data": task.fingerprint, **options}
        run_dir = run_directory.create(str(out), flags)
        save_interface(run_dir, task)
        shapes = jax.eval_shape(lambda: make_model(task.interface, ModelSettings.of_flags(flags), nnx.Rngs(0)))
        model = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        checkpoints.save_checkpoint(run_dir, "best", model, {"step": 1})


def write_finished_run(out):
    flags = {
        "task": "adding", "cell": "lstm", "hidden": 8, "pool": None, "recurrent": False, "bidirectional": False,
        "seed": 0, "out": str(out), "data": {"test_sha256": "abc"},
    }  # fmt: skip
    run_dir = run_directory.create(str(out), flags)
    row = {
        "cell": "", "seed": 0, "layer": "", "part": "", "stage": "", "horizon_e": "", "horizon_1000": "",
        "test_score": 0.5, "validation_score": 0.5, "baseline_score": 0.6, "best_step": 5, "steps": 5, "skipped": 0,
        "parameters": 9, "seconds": 1.0,
    }  # fmt: skip
    run_directory.save_table(run_dir, [row])
    with run_directory.MetricWriter(run_dir) as writer:
        writer.write(5, {"validation/mse": 0.5, "test/mse": 0.5})


def expand(text, folder):
    return text.replace("{dir}", str(folder)).replace("{long}", "n" * 300).replace("{huge}", str(10**30))


@pytest.fixture(scope="module")
def told(files, tmp_path_factory, data_dir):
    """The answers by program, with the command line and the words that are to be in the sentence."""
    tasks.make_task("digits", data_dir=data_dir)  # or its preparation would be told on stderr, too
    given = {program: [(expand(line, files), expand(words, files)) for line, words in lines.items()]
             for program, lines in table.BY_PROGRAM.items()}  # fmt: skip
    jobs = {program: [shlex.split(line) for line, _ in lines] for program, lines in given.items()}
    found = answers(tmp_path_factory.mktemp("bad_command_lines"), jobs, files, data_dir)
    return {program: list(zip(given[program], found[program], strict=True)) for program in given}


def fault(line, words, answer):
    """What is wrong with an answer; None if nothing is."""
    sentence, *frames = answer.said.splitlines() or [""]
    if answer.status != 1:
        return f"status {answer.status}"
    if answer.left:
        return f"it left {answer.left}"
    if len(sentence) > LONGEST:
        return f"a sentence of {len(sentence)} characters"
    if words not in sentence or not sentence.isprintable():
        return "another sentence"
    of_the_user = words in table.FAILING_CELLS.values()
    of_others = [text for text in frames if not text.startswith("    ") and "bad_cells.py" not in text]
    if of_others or (frames and not of_the_user):
        return "more than a sentence"
    if of_the_user and not frames:
        return "no frames"
    return None


@pytest.mark.parametrize("program", table.BY_PROGRAM)
def test_a_bad_command_line_gets_one_sentence_and_status_1_and_leaves_nothing(told, program):
    faults = [(fault(line, words, answer), line, words, answer.said) for (line, words), answer in told[program]]
    wrong = ["\n".join(["", *map(str, found)]) for found in faults if found[0]]
    assert not wrong, "".join(wrong)


def test_three_hundred_command_lines_and_more_are_tried():
    assert sum(map(len, table.BY_PROGRAM.values())) >= 300
