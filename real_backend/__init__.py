"""Time with real models: models, kvcache, llama, verify, engine, capture, measure, the embedded
pair.
"""

import importlib
import sys


def _refuse_strangers() -> None:
    """Exit with one line if `traces` or `policies` is another project's: both are names on PyPI,
    and installed beside GammaLab one overwrites the other.
    """
    for name in ("traces", "policies"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            module = None
        if getattr(module, "PROJECT", None) != "gammalab":
            where = getattr(module, "__file__", None) or "not found"
            print(
                f"gammalab: the package `{name}` ({where}) is not GammaLab's: another project of "
                "that name was installed over it; give GammaLab an environment of its own, or "
                f"uninstall {name} and then install GammaLab again",
                file=sys.stderr,
            )
            raise SystemExit(2)


_refuse_strangers()  # here, so that no command can start without it: experiments imports this
