"""Third-party files that ship with the project, each folder with its licence."""
