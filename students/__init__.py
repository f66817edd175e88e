"""Registered students: one file each. Import as `distillkit.students`."""

if __name__ != "distillkit.students":
    raise ImportError("import distillkit.students, not students: the folder is mapped into the package")
