"""Files in the shapes that people have, and what must come out of them: `python -m tests.cases --folder FOLDER`."""
