"""Latency tables: programs at other widths, the arithmetic of a table, its file. Nothing here depends on how fast the
machine is: where times matter, the engine is replaced by one whose times are known."""

import json
import re
from dataclasses import dataclass

import numpy as np
import pytest

import toy_programs as toys
from qvit_runtime import latency
from qvit_runtime import program as p
from qvit_runtime.artifact import save
from qvit_runtime.check import check
from qvit_runtime.cli import main
from qvit_runtime.engine import StepTime
from qvit_runtime.latency import REFERENCE, at_bits, measure_table, rising
from qvit_runtime.latency_table import LatencyError, LatencyTable, read_table
from qvit_runtime.products import meeting_bits, multiplied_bits, products
from toy_integer_programs import integer_vit_program, log2_program, regions_program

PROGRAMS = {
    "vit": toys.vit_program(),
    "swin": toys.swin_program(),
    "mid-rise": toys.vit_program(depth=1, midrise=0.5, seed=6),
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_at_other_widths(program):
    """Every product meets the widths that were asked for, and the program is well formed and still runs."""
    rng = np.random.default_rng(0)
    wanted = {x.right: tuple(int(b) for b in rng.integers(2, 9, 2)) for x in products(program)}
    other = at_bits(program, wanted)
    check(other)
    assert other.ops == program.ops
    for product in products(other):
        left, right = meeting_bits(other, product)
        assert set(zip(left.flat, right.flat, strict=True)) == {wanted[product.right]}
        assert left.size == meeting_bits(program, product)[0].size


@dataclass
class _TimedEngine:
    """Stands for `Engine`: its steps take `seconds(kind, left, right)` on each of two threads, whole calls 1 s more."""

    program: p.Program
    threads: int
    path: str

    def __call__(self, images):
        _TimedEngine.clock += 1.0 + sum(step.seconds for step in self.profile(images)) / self.threads

    def profile(self, images):
        found, steps = products(self.program), []
        attention = {x.op for x in found if not isinstance(self.program.ops[x.op], p.Linear)}
        for ops in [{x.op} for x in found if x.op not in attention] + [
            {a, a + 3} for a in attention if a + 3 in attention
        ]:
            total = sum(seconds(self.program, x) for x in found if x.op in ops)
            steps.append(StepTime("step", tuple(sorted(ops)), total * self.threads))
        return steps


def seconds(program, product):
    left, right = multiplied_bits(program, product)
    return float((1e-3 * product.op + 0.1 * left + 0.01 * right * right).mean())


@pytest.fixture
def timed(monkeypatch):
    _TimedEngine.clock = 0.0
    monkeypatch.setattr(latency, "Engine", _TimedEngine)
    monkeypatch.setattr(latency.time, "perf_counter", lambda: _TimedEngine.clock)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_table_predicts_programs_it_has_not_seen(timed, name):
    """Times that add up over products, two of which share a step, are recovered: for any mixed program, exactly."""
    program = PROGRAMS[name]
    assert isinstance(
        program.ops[next(x.op for x in products(program) if x.right.endswith("k_codes")) + 3], p.AttentionValue
    )
    table = measure_table(program, threads=2, repeats=1, rounds=1, path="known")
    assert (table.path, table.threads, table.batch) == ("known", 2, 1)
    expected = 1.0 + sum(seconds(program, x) for x in products(program))
    assert table.predict(program) == pytest.approx(1e3 * expected, rel=1e-9)
    assert table.fixed == pytest.approx(1e3, rel=1e-9)
    for product, times in zip(products(program), table.ms, strict=True):
        if isinstance(program.ops[product.op], p.Linear):
            at = at_bits(program, {x.right: REFERENCE for x in products(program)})
            assert times[2, 2] == pytest.approx(1e3 * seconds(at, product))


def test_at_least_one_call():
    with pytest.raises(ValueError, match="repeats is 0 and rounds is 5; both take at least 1"):
        measure_table(PROGRAMS["vit"], repeats=0)


@pytest.mark.parametrize(
    ("build", "op"),
    [(integer_vit_program, "LinearAccumulate"), (log2_program, "Dequantize"), (regions_program, "QuantizeRegions")],
)
def test_programs_made_for_their_widths_are_refused(build, op, tmp_path, capsys):
    program = build()
    text = rf"a table needs .* and {op} '.+' is one of \d+ ops on integers .*; bench the program without a table, or .*"
    with pytest.raises(ValueError, match=text):
        measure_table(program)
    save(program, tmp_path / "toy.qvit")
    assert main(["bench", str(tmp_path / "toy.qvit"), "--table", str(tmp_path / "t.json")]) == 2
    assert re.fullmatch("qvit-runtime: " + text + "\n", capsys.readouterr().err)
    assert not (tmp_path / "t.json").exists()


def test_rising():
    noise = np.random.default_rng(0).standard_normal((3, 7, 7))
    made = rising(noise)
    assert (np.diff(made, axis=1) >= 0).all()
    assert (np.diff(made, axis=2) >= 0).all()
    np.testing.assert_array_equal(rising(made), made)
    up = np.arange(49.0).reshape(7, 7)
    up[3, 3] += 3.5  # above the rest of its row, below the next one
    assert rising(up)[3, 3] == pytest.approx((27.5 + 25) / 2)


def some_table(seed=0, **changes):
    program = PROGRAMS["vit"]
    macs = {x.right: x.macs for x in products(program)}
    times = np.random.default_rng(seed).uniform(0, 1, (len(macs), 7, 7)).cumsum(1).cumsum(2).round(6)
    return LatencyTable(
        **{"source": "t", "path": "toy", "threads": 2, "batch": 1, "fixed": 0.5, "macs": macs, "ms": times} | changes
    )


def test_a_table_survives_its_file(tmp_path):
    table = some_table()
    table.save(tmp_path / "t.json")
    again = read_table(tmp_path / "t.json")
    assert again.source == str(tmp_path / "t.json")
    assert (again.path, again.threads, again.batch, again.fixed) == ("toy", 2, 1, 0.5)
    assert again.macs == table.macs
    np.testing.assert_array_equal(again.ms, table.ms)
    assert again.predict(PROGRAMS["vit"]) == table.predict(PROGRAMS["vit"])
    uniform = at_bits(PROGRAMS["vit"], dict.fromkeys(table.macs, (5, 5)))
    assert again.uniform(5) == pytest.approx(again.predict(uniform))
    with pytest.raises(
        LatencyError, match=r"t.json was measured on another network: .* in the table and .* in the model"
    ):
        again.predict(PROGRAMS["swin"])


def test_mid_rise_weights_take_the_time_of_one_bit_more():
    """Their codes have one more; at 7 bits that is the last column of the table."""
    table = some_table()
    for bits in (2, 7):
        found, expected = (
            toys.vit_program(bits=4, weight_bits=width, midrise=share)
            for width, share in ((bits, 1.0), (bits + 1, 0.0))
        )
        assert table.predict(found) == table.predict(expected) > table.predict(at_bits(found, same_bits(found)))


def same_bits(program):
    """For `at_bits`: the widths that a program of 4-bit activations has already."""
    return {x.right: tuple(int(bits.flat[0]) for bits in meeting_bits(program, x)) for x in products(program)}


def test_whether_bits_matter():
    table = some_table()
    assert table.bits_matter
    assert not some_table(ms=np.ones_like(table.ms) * np.linspace(1, 1.01, 7)).bits_matter


def broken(change):
    def edit(content):
        change(content)
        return json.dumps(content)

    return edit


FIRST = "patch_embed.proj.weight"


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda content: "{", "the file is not JSON"),
        (lambda content: "[]", "the file is a list, allowed: an object"),
        (broken(lambda c: c.update(format="qvit")), "format is 'qvit', allowed: 'qvit latency table'"),
        (broken(lambda c: c.update(version=2)), "version is '2', allowed: 1"),
        (broken(lambda c: c.update(path=3)), "path is '3', allowed: the name of a kernel path"),
        (broken(lambda c: c.update(threads=0)), "threads is '0', allowed: a whole number from 1 on"),
        (broken(lambda c: c.pop("batch")), "batch is 'None', allowed: a whole number from 1 on"),
        (broken(lambda c: c.update(fixed_ms="1")), "fixed_ms is '1', allowed: a number"),
        (broken(lambda c: c.update(products={})), "products is not a table of products"),
        (broken(lambda c: c["products"].update({FIRST: 3})), r"products\['patch_embed.proj.weight'\] is not a table"),
        (broken(lambda c: c["products"][FIRST].update(macs=1.5)), r"weight'\].macs is '1.5', allowed: a whole number"),
        (broken(lambda c: c["products"][FIRST].update(ms=[[1]])), r"weight'\].ms is not 7 rows of 7 numbers"),
        (broken(lambda c: c["products"][FIRST]["ms"][0].pop()), r"weight'\].ms is not 7 rows of 7 numbers"),
        (broken(lambda c: c["products"][FIRST]["ms"][1].__setitem__(1, None)), r"ms holds something else than numbers"),
        (broken(lambda c: c["products"][FIRST]["ms"][1].__setitem__(1, 1e9)), r"ms falls with more bits somewhere"),
        (lambda content: json.dumps(content).replace("0.5", "NaN", 1), "a number is NaN, allowed: finite numbers"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_line(tmp_path, edit, text):
    path = tmp_path / "t.json"
    some_table().save(path)
    path.write_text(edit(json.loads(path.read_text())))
    with pytest.raises(LatencyError, match=f"t.json is not a latency table that this version reads: .*{text}"):
        read_table(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(LatencyError, match=r"there is no latency table .*; measure one with qvit-runtime bench MODEL"):
        read_table(tmp_path / "none.json")


def test_verb(tmp_path, capsys):
    model, table = str(tmp_path / "toy.qvit"), str(tmp_path / "toy.latency.json")
    save(PROGRAMS["vit"], model)
    assert (
        main(["bench", model, "--table", table, "--repeats", "1", "--threads", "1", "--json", str(tmp_path / "r")]) == 0
    )
    text = capsys.readouterr().out
    assert f"wrote {table}: " in text
    assert "next: qvit.Budget(milliseconds=" in text or "bits do not change the time on this path" in text
    measured, result = read_table(table), json.loads((tmp_path / "r").read_text())
    assert measured.threads == 1
    assert result["table"] == table
    assert result["uniform_ms"]["4"] == pytest.approx(measured.uniform(4), abs=1e-4)
