"""Registered teachers: one file each. Import as `distillkit.teachers`."""

if __name__ != "distillkit.teachers":
    raise ImportError("import distillkit.teachers, not teachers: the folder is mapped into the package")
