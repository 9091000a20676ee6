"""The house rules: storeys, file sizes, public names, and hands off other people's globals."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pyro_nfvi"

#: Storey of each module or folder directly below the package; imports point down or sideways.
STOREYS = {
    0: {
        "_autocast",
        "_budget",
        "_chain_rule",
        "_compat",
        "_error_text",
        "_eval_mode",
        "_files",
        "_folder_lock",
        "_lazy",
        "_html",
        "_math",
        "_model_lock",
        "_operators",
        "_option_names",
        "_optional_import",
        "_parent",
        "_processes",
        "_progress_bar",
        "_random",
        "_stopwatch",
        "_timing",
        "_typing",
        "_user_warning",
        "_validation",
        "_vjp",
        "_version",
        "errors",
    },
    1: {"_nn", "_optim"},
    2: {"flows"},
    3: {"_gaussian_vi", "_mcmc", "diagnostics", "distributions", "objectives", "testing"},
    4: {"_engine", "_pyro_model", "_train", "guides"},
    5: {"infer"},
    6: {
        "_command",
        "_map_fits",
        "_show_versions",
        "amortised",
        "arviz",
        "calibration",
        "plots",
        "vae",
    },
    7: {"__init__", "__main__"},
}
STOREY_OF = {name: storey for storey, names in STOREYS.items() for name in names}
PYRO_FROM = 4

#: Methods that forward to a storey above, so that users find them: ``fit.to_arviz()`` calls
#: ``to_arviz(fit)``, ``density.distribution()`` makes a distribution of Pyro. Allowed inside
#: functions only.
DOORS = {("infer", "arviz"), ("infer", "plots"), ("distributions", "_pyro_model")}

RUNTIME = {"torch", "numpy", "tqdm", "pyro"}
#: What Pyro itself depends on, for sums over enumerated sites as Pyro does them.
WITH_PYRO = {"opt_einsum"}
#: Packages that are optional or used seldom, and the only folders that may import them (inside
#: functions, so that ``import pyro_nfvi`` does not wait for them).
OPTIONAL = {
    "arviz": {"arviz"},
    "arviz_stats": {"arviz"},  # ArviZ 1 has its tables of LOO there
    "cloudpickle": {"_processes"},
    "h5netcdf": {"arviz"},
    "zarr": {"arviz"},
    "h5py": {"arviz"},
    "loky": {"_processes"},
    "matplotlib": {"plots", "vae"},
    "pandas": {"infer"},
    "platformdirs": {"_engine"},
    "sklearn": {"distributions", "vae"},
    "torchdiffeq": {"flows"},
    "xarray": {"arviz"},
}


@dataclass(frozen=True)
class Import:
    """One import statement: who imports what, and where it stands."""

    module: str  # dotted, relative to the package: "flows.planar"
    target: str  # dotted, absolute
    line: int
    in_function: bool
    typing_only: bool

    @property
    def part(self) -> str:
        return self.module.split(".")[0]

    @property
    def package(self) -> str:
        return self.target.split(".")[0]

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def test_no_command_knows_an_option_by_its_beginning():
    # argparse does unless told: ``sweep --flow`` was read as ``--flows``.
    found = 0
    for folder in ("pyro_nfvi", "examples", "benchmarks", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if not (isinstance(node, ast.Call) and "ArgumentParser" in ast.unparse(node.func)):
                    continue
                given = {one.arg: ast.unparse(one.value) for one in node.keywords}
                assert given.get("allow_abbrev") == "False", f"{path}:{node.lineno}"
                found += 1
    assert found > 10


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if len(parts) > 1 and parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = path
    return found


MODULES = modules()


def imports_of(module: str, source: str) -> list[Import]:
    found: list[Import] = []

    def targets(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif node.level:
            yield "." * node.level + (node.module or "")
        else:
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}".removeprefix("pyro_nfvi.")
                is_module = node.module.startswith("pyro_nfvi") and inner in MODULES
                yield f"pyro_nfvi.{inner}" if is_module else node.module

    def visit(node: ast.AST, in_function: bool, typing_only: bool) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for target in targets(node):
                found.append(Import(module, target, node.lineno, in_function, typing_only))
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        other_branch = set(map(id, node.orelse)) if guarded else set()
        for child in ast.iter_child_nodes(node):
            visit(
                child,
                in_function or inside,
                typing_only or guarded and id(child) not in other_branch,
            )

    visit(ast.parse(source), False, False)
    return found


IMPORTS = [
    one for name, path in MODULES.items() for one in imports_of(name, path.read_text("utf-8"))
]
AT_RUN_TIME = [one for one in IMPORTS if not one.typing_only]


def broken(imports: list[Import]) -> list[str]:
    """Imports that point up, or bring Pyro below its storey."""
    found = []
    for one in imports:
        if one.typing_only:
            continue
        here = STOREY_OF[one.part]
        if one.package == "pyro_nfvi":
            target = (one.target.split(".") + ["__init__"])[1]
            if STOREY_OF[target] > here and not (one.in_function and (one.part, target) in DOORS):
                found.append(f"{one} (storey {here} -> {STOREY_OF[target]})")
        elif one.package in {"pyro", "pyroapi"} and here < PYRO_FROM:
            found.append(f"{one} (storey {here} knows no Pyro)")
    return found


def test_every_module_has_a_storey():
    homeless = {name.split(".")[0] for name in MODULES} - set(STOREY_OF)
    assert not homeless, f"give {homeless} a storey in this test and in docs/architecture.md"


def test_imports_point_down():
    assert broken(AT_RUN_TIME) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("_nn.made", "from pyro_nfvi.flows import Flow"),
        ("flows._base", "def f():\n    import pyro_nfvi.distributions._flow_density"),
        ("flows._base", "import pyro"),
        ("objectives._elbo", "def f():\n    from pyro import poutine"),
        ("guides._auto", "from pyro_nfvi import NFVI"),
        ("infer._nfvi", "from pyro_nfvi.arviz import to_arviz"),
    ],
)
def test_the_check_itself_sees_a_broken_import(module, source):
    assert len(broken(imports_of(module, source))) == 1


def test_the_check_itself_lets_typing_pass():
    source = "if TYPE_CHECKING:\n    from pyro_nfvi.infer import Fit\n    import pyro"
    assert broken(imports_of("flows._base", source)) == []


@pytest.mark.parametrize("for_types", [False, True], ids=["when imported", "with types"])
def test_modules_import_no_cycle(for_types):
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for one in IMPORTS:
        target = one.target.removeprefix("pyro_nfvi.")
        if one.package != "pyro_nfvi" or target not in MODULES:
            continue
        late = one.in_function or one.typing_only
        # A face is what users import from; for types, modules name modules.
        is_face = MODULES[one.module].stem == "__init__"
        if not late or for_types and not is_face:
            graph[one.module].add(target)
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"import cycle: {' -> '.join((*path, name))}"
        if name not in done:
            for target in sorted(graph[name]):
                walk(target, (*path, name))
            done.add(name)

    for name in graph:
        walk(name, ())


#: Import names of the packages that are named otherwise where they are installed from.
IMPORT_NAMES = {"pyro-ppl": "pyro", "scikit-learn": "sklearn", "pytest-timeout": "pytest_timeout"}
#: What the comparisons take in processes of another environment, which say so where it is missing,
#: and the words in the names of the files that import it.
RIVALS = {"jax": "numpyro", "numpyro": "numpyro", "pymc": "pymc", "nutpie": "pymc"}
#: What a declared package hands out objects of: ArviZ 1 has its groups in xarray's trees.
WITH_ARVIZ = {"xarray"}


def test_tests_examples_and_benchmarks_import_what_is_declared():
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    named = re.findall(r"""["']([A-Za-z][\w.-]*)[>=<]=""", text.split("[tool.")[0])
    declared = {IMPORT_NAMES.get(name, name) for name in named}
    declared |= WITH_ARVIZ | {"benchmarks", "pyro_nfvi"}
    assert {"torch", "pyro", "sklearn", "hypothesis", "scipy"} <= declared
    wrong = []
    for folder in ("tests", "examples", "benchmarks"):
        files = sorted((ROOT / folder).rglob("*.py"))
        ours = {part for path in files for part in (path.stem, path.parent.name)}
        for path in files:
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    names = [one.name for one in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names = [node.module]
                else:
                    continue
                for name in {name.split(".")[0] for name in names}:
                    known = name in declared | ours or name in sys.stdlib_module_names
                    rival = name in RIVALS and RIVALS[name] in path.name
                    if not (known or rival):
                        wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert wrong == []


def test_third_parties_are_dependencies_and_optional_ones_stay_in_their_module():
    wrong = []
    for one in AT_RUN_TIME:
        if one.package in sys.stdlib_module_names or one.package in RUNTIME | {"pyro_nfvi"}:
            continue
        if one.package in WITH_PYRO and STOREY_OF[one.part] >= PYRO_FROM:
            continue
        if one.in_function and one.part in OPTIONAL.get(one.package, set()):
            continue
        wrong.append(str(one))
    assert wrong == []


def test_every_module_says_what_it_is_for():
    vague = {"utils", "helpers", "core", "common", "misc"}
    assert [name for name, path in MODULES.items() if path.stem in vague] == []
    trees = {name: ast.parse(path.read_text("utf-8")) for name, path in MODULES.items()}
    # A module says in its docstring what it is for.
    assert [name for name, one in trees.items() if one.body and not ast.get_docstring(one)] == []


def private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def test_no_two_modules_share_a_name():
    # Recipes are the numbers of their folders.
    stems = [path.stem for path in MODULES.values() if path.stem not in ("__init__", "__main__")]
    shared = {stem for stem in stems if stems.count(stem) > 1}
    # The result of a fit, and the function that fits a VAE.
    assert shared <= {"_recipe", "recipe", "_fit"}


def test_docstrings_open_with_an_imperative_or_a_noun():
    relative = re.compile(r"(What|Whether|How|Where|Which|Why|Who|Whatever|Does|Is|Did|That)\b")
    wrong = []
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                if relative.match(ast.get_docstring(node) or ""):
                    wrong.append(f"{name}: {ast.get_docstring(node)[:60]}")
    assert wrong == []


#: Modules whose names users type: the ``__init__`` of every public folder, and the errors.
FACES = [name for name, path in MODULES.items() if not private(name) and path.stem != "__main__"]


def test_what_is_not_private_is_a_face():
    assert [name for name in FACES if MODULES[name].stem not in ("__init__", "errors")] == []
    for name, path in MODULES.items():
        if private(name) and path.stem == "__init__":
            body = ast.parse(path.read_text("utf-8")).body
            assert len(body) == 1, f"{name} is private: import from its modules"


@pytest.mark.parametrize("name", FACES)
def test_all_is_complete_and_true(name):
    module = importlib.import_module(f"pyro_nfvi.{name}" if name != "__init__" else "pyro_nfvi")
    public = getattr(module, "__all__", None)
    if name == "vae.train":
        return  # a command
    assert public is not None, "every face lists its names in __all__"
    assert len(set(public)) == len(public)
    missing = [entry for entry in public if not hasattr(module, entry)]
    assert missing == []
    undocumented = [
        entry
        for entry in public
        if (isinstance(getattr(module, entry), type) or callable(getattr(module, entry)))
        and getattr(getattr(module, entry), "__module__", "").startswith("pyro_nfvi")
        and not (vars(getattr(module, entry)).get("__doc__") or getattr(module, entry).__doc__)
    ]
    assert undocumented == []


def test_public_names_stay_few():
    """A change that adds a public name raises the figure, and says in its message why."""
    faces = [
        importlib.import_module(f"pyro_nfvi.{name}".removesuffix(".__init__")) for name in FACES
    ]
    assert sum(len(getattr(face, "__all__", ())) for face in faces) <= 164


#: Packages whose names users type.
PUBLIC = [
    "",
    "amortised",
    "arviz",
    "calibration",
    "diagnostics",
    "distributions",
    "flows",
    "guides",
    "infer",
    "objectives",
    "plots",
    "testing",
    "vae",
]


@pytest.mark.parametrize("name", [name for name in PUBLIC if name in MODULES or not name])
def test_public_names_have_an_example(name):
    module = importlib.import_module(f"pyro_nfvi.{name}".rstrip("."))
    missing = []
    for entry in module.__all__:
        item = getattr(module, entry)
        if not (inspect.isclass(item) or inspect.isfunction(item)):
            continue
        interface = inspect.isabstract(item) or getattr(item, "_is_protocol", False)
        record = hasattr(item, "_fields") or dataclasses.is_dataclass(item)
        error = inspect.isclass(item) and issubclass(item, Exception)
        if interface or record or error:
            continue
        if ">>>" not in (item.__doc__ or ""):
            missing.append(entry)
    assert missing == []


def in_fresh_python(code: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_import_changes_no_global_state_and_brings_in_no_optional_package():
    changed = in_fresh_python(
        """
        import inspect, random, sys, warnings
        import numpy, torch, pyro, pyro.infer.autoguide, pyro.infer.reparam
        from torch.distributions import Distribution

        def switches():
            return {
                "dtype": torch.get_default_dtype(),
                "threads": torch.get_num_threads(),
                "grad": torch.is_grad_enabled(),
                "validation": Distribution._validate_args,
                "pyro validation": pyro.poutine.util.is_validation_enabled(),
                "torch rng": torch.get_rng_state().tolist(),
                "numpy rng": str(numpy.random.get_state()),
                "python rng": random.getstate(),
                "params": sorted(pyro.get_param_store().keys()),
                "stack": len(pyro.poutine.runtime._PYRO_STACK),
                "warnings": list(warnings.filters),
            }

        def code():
            # Functions and methods of torch.distributions and Pyro, by identity.
            found = {}
            for name, module in list(sys.modules.items()):
                if not name.startswith(("torch.distributions", "pyro.", "torch.nn.modules")):
                    continue
                for key, value in list(vars(module).items()):
                    if inspect.isfunction(value):
                        found[name, key] = value
                    elif inspect.isclass(value):
                        found[name, key] = value
                        for inner, method in list(vars(value).items()):
                            if callable(method):
                                found[name, key, inner] = method
            return found

        before, code_before = switches(), code()
        import pyro_nfvi, pyro_nfvi.infer._run_fit
        loaded = [getattr(pyro_nfvi, name) for name in pyro_nfvi.__all__]
        after, code_after = switches(), code()
        print(*[key for key in before if before[key] != after[key]])
        print(*[key for key in code_before if code_before[key] is not code_after.get(key)])
        print(*sorted({"arviz", "matplotlib", "xarray", "zuko"} & set(sys.modules)))
        """
    )
    assert changed == ""


def test_the_walks_through_the_code_name_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    walks = text.split("## Three walks through the code")[1].split("\n## ")[0]
    named = re.findall(r"`([\w/]+\.py)`(?:\s+\(`(\w+)`\))?", walks)
    assert len(named) > 20
    for path, name in named:
        source = (PACKAGE / path).read_text("utf-8")
        assert re.search(rf"^(?:def|class) {name}\b", source, re.MULTILINE) or not name, path


#: Packages that take long to import, of which a fit needs none before it asks for it by name.
HEAVY = {
    "arviz", "concurrent.futures.process", "h5py", "loky", "matplotlib", "multiprocessing.pool",
    "numba", "pandas", "scipy", "sklearn", "sympy", "torch._dynamo", "torch._inductor",
    "torchdiffeq", "xarray", "zuko",
}  # fmt: skip


def test_names_that_are_not_there_are_attribute_errors():
    import pyro_nfvi

    assert {"NFVI", "flows", "__version__"} <= set(dir(pyro_nfvi))
    with pytest.raises(AttributeError, match="module 'pyro_nfvi' has no attribute 'nothing'"):
        _ = pyro_nfvi.nothing
    with pytest.raises(AttributeError, match="module 'pyro_nfvi.infer' has no attribute"):
        _ = pyro_nfvi.infer.nothing


@pytest.mark.parametrize(
    ("code", "most"),
    [
        ("import pyro_nfvi", 10),
        ("import pyro_nfvi; dir(pyro_nfvi)", 10),
        ("from pyro_nfvi import flows", 60),
        ("from pyro_nfvi import FlowDensity", 80),
        ("from pyro_nfvi import AutoIAF", 130),
        ("from pyro_nfvi import NFVI", 120),
        ("from pyro_nfvi import *", 300),
    ],
)
def test_a_name_loads_what_it_needs(code, most):
    script = f"""
    import sys, torch, pyro, pyro.infer
    before = set(sys.modules)
    {code}
    new = set(sys.modules) - before
    print(len(new), *sorted(new & {HEAVY}))
    """
    count, *heavy = in_fresh_python(script).split()
    assert heavy == []
    assert int(count) <= most
