"""Writes modules the way NVIDIA's training codes pickle them: as a class name and source text."""

import pickle
import sys
import types

import torch

SOURCE = "raise SystemExit('source text from the file ran')"


def _modules():
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("the file's function ran")

    class EasyDict(dict):
        pass

    for module, thing in ((persistence, _reconstruct_persistent_obj), (util, EasyDict)):
        thing.__module__, thing.__qualname__ = module.__name__, thing.__name__
        setattr(module, thing.__name__, thing)
    return {
        "torch_utils": types.ModuleType("torch_utils"),
        "torch_utils.persistence": persistence,
        "dnnlib": types.ModuleType("dnnlib"),
        "dnnlib.util": util,
    }


def dump(path, key, module, class_name, init_kwargs=None, protocol=4):
    """Pickle `{key: module}` to `path`."""
    fake = _modules()
    rebuild, easy = (
        fake["torch_utils.persistence"]._reconstruct_persistent_obj,
        fake["dnnlib.util"].EasyDict,
    )

    class Wrapped:
        def __init__(self, module, class_name, init_kwargs):
            self.module, self.class_name, self.init_kwargs = module, class_name, init_kwargs

        def __reduce__(self):
            state = {
                k: v
                for k, v in self.module.__dict__.items()
                if k in ("training", "_parameters", "_buffers")
            }
            state["_modules"] = {
                k: None if m is None else Wrapped(m, type(m).__name__, {})
                for k, m in self.module._modules.items()
            }
            state |= dict(_init_args=(), _init_kwargs=easy(self.init_kwargs))
            return rebuild, (
                easy(
                    type="class",
                    version=6,
                    module_src=SOURCE,
                    class_name=self.class_name,
                    state=state,
                ),
            )

    before = {name: sys.modules.get(name) for name in fake}
    sys.modules.update(fake)
    try:
        data = pickle.dumps(
            {
                key: Wrapped(module, class_name, init_kwargs or {}),
                "dataset_kwargs": easy(resolution=8),
            },
            protocol,
        )
    finally:
        for name, old in before.items():
            if old is None:
                del sys.modules[name]
            else:
                sys.modules[name] = old
    path.write_bytes(data)


def tree(state):
    """Modules whose buffers have the names of a state dict."""
    root = torch.nn.Module()
    for name, value in state.items():
        *path, last = name.split(".")
        node = root
        for part in path:
            if part not in node._modules:
                node.add_module(part, torch.nn.Module())
            node = node._modules[part]
        node.register_buffer(last, value)
    return root
