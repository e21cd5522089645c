"""Prints, a line each: site-packages and prefix of this Python environment, then the folders of the CMake packages of MLX, oneDNN and OpenBLAS
as the wheels' own file lists name them (empty when a wheel is missing)."""

import importlib.metadata
import sysconfig


def folder_of(names, file):
    for name in names:
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for path in files:
            if path.name.lower() == file:
                return path.locate().resolve().parent
    return ""


paths = sysconfig.get_paths()
print(paths["platlib"])
print(paths["data"])
print(folder_of(["mlx-cpu", "mlx-cuda-13", "mlx-cuda-12", "mlx-metal"], "mlxconfig.cmake"))
print(folder_of(["onednn-devel-cpu-gomp"], "dnnl-config.cmake"))
print(folder_of(["scipy-openblas32"], "openblasconfig.cmake"))
