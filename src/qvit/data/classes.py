"""Which class is which output of the model: by sorted name, unless a class map gives the order.

A data set has names, a model has outputs, and only their numbers connect the two. Ten folders of ImageNet's classes would be
outputs 0 to 9 of a model of 1,000, which stand for ten others: every label wrong, top-1 near 0, and no error. So classes that
are numbered by name must be as many as the outputs. Where they are not, a class map says which output is whose: a text file
with one class (folder) name per line, the first line that of output 0; it may have fewer lines than the model has outputs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from .config import DataConfig, DataError

NAMED = 3  # classes that an error names


def read_class_map(path: str) -> dict[str, int] | None:
    """A class map as name -> output; None for no path. Raises DataError when it is missing, no text, or has a name twice."""
    if not path:
        return None
    if not Path(path).is_file():
        raise DataError(f"class_map={path!r} is not a file; give a text file with one class name per line")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        raise DataError(f"class_map={path!r} is not text in UTF-8 ({error}); save it as that") from error
    outputs = {name: output for output, line in enumerate(lines) if (name := line.strip())}
    twice = [name for output, line in enumerate(lines) if (name := line.strip()) and outputs[name] != output]
    if twice:
        raise DataError(f"class_map={path!r} gives two outputs to {_some(twice)}; a class is one output")
    return outputs


def in_order(outputs: Mapping[str, int]) -> tuple[str, ...]:
    """The names of a map by their outputs."""
    return tuple(sorted(outputs, key=outputs.__getitem__))


def outputs_of(names: Sequence[str], class_map: Mapping[str, int], path: str) -> list[int]:
    """The output of each class of a data set. Raises DataError for a class that the map at `path` has not, or no names."""
    missing = [name for name in names if name not in class_map]
    if missing or not names:
        what = f"has no place for {_some(missing)}" if missing else "needs classes with names, which are not there"
        raise DataError(f"class_map={path!r} {what}; correct it, or leave it out")
    return [class_map[name] for name in names]


def outputs_of_names(names: Sequence[str], outputs: Sequence[str]) -> list[int]:
    """The output of each class of a data set, by the names that the outputs of a model have, or by their numbers ("0", "1", ...).

    Raises DataError for another name.
    """
    if all(name.isdecimal() and int(name) < len(outputs) and name not in outputs for name in names):
        return [int(name) for name in names]
    missing = [name for name in names if name not in outputs]
    if missing:
        raise DataError(
            f"the outputs of the model are called {_some(outputs)}, and none is called {_some(missing)}; give class_map "
            "(--class-map), a text file with one class name per line in the order of the outputs, or --class-map '', which numbers "
            "the classes by their sorted names"
        )
    return [outputs.index(name) for name in names]


def fits(names: Sequence[str], config: DataConfig) -> bool:
    """Whether every output has a class, or a class map says which ones have; true where names are not known or there are no
    outputs that are classes."""
    outputs = config.num_classes
    if not names or not outputs:
        return True
    return len(names) <= outputs if config.class_map else len(names) == outputs


def check_classes(names: Sequence[str], config: DataConfig, split: str) -> None:
    """Raise DataError unless the classes of a split fit the outputs of the model."""
    if not fits(names, config):
        raise class_error(names, config, split)


def class_error(names: Sequence[str], config: DataConfig, split: str) -> DataError:
    """What is wrong with classes that do not fit, and what to give."""
    count, outputs = len(names), config.num_classes or 0
    text = f"split {split!r} has {count} classes ({_some(names)}), but the model has {outputs} outputs"
    mend = f"use a model with num_classes={count}"
    if count < outputs:
        text += f": numbered by name they would be outputs 0 to {count - 1}, whatever those stand for"
        file = "a text file with one class name per line in the order of the outputs"
        mend = f"give class_map (--class-map), {file}, or {mend}"
    return DataError(f"{text}; {mend}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
