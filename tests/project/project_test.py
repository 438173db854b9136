#!/usr/bin/env python3
"""Tests of the project itself: the house rules catch what they should, and the README shows what is tested.

python3 project_test.py SOURCE_FOLDER
"""

import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import house_rules

TOP = pathlib.Path(sys.argv.pop()).resolve()


class HouseRules(unittest.TestCase):
    def problems(self, path, text):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / path
            file.parent.mkdir(parents=True)
            file.write_text(text, encoding="utf-8")
            return house_rules.check(pathlib.Path(folder))

    def test_upward_include_is_found(self):
        found = self.problems("src/core/a.cpp", '// A.\n#include "core/b.h"\n#include "cpu/engine.h"\n')
        self.assertEqual(len(found), 1)
        self.assertIn("src/core/a.cpp:3: core includes cpu/engine.h", found[0])

    def test_downward_includes_are_free(self):
        text = '// A.\n#include <vector>\n#include "flash3/tensor.h"\n#include "core/b.h"\n#include "hopper/tma.h"\n'
        self.assertEqual(self.problems("src/forward/a.h", text), [])

    def test_kernels_of_different_rooms_stay_apart(self):
        self.assertEqual(len(self.problems("src/forward/a.h", '// A.\n#include "backward/b.h"\n')), 1)

    def test_public_headers_include_public_headers_only(self):
        self.assertEqual(len(self.problems("include/flash3/a.h", '/// \\file\n#include "core/b.h"\n')), 1)

    def test_asm_lives_in_one_room(self):
        for text in ('asm volatile("nop;");', 'asm("nop;");', '__asm__ __volatile__ ("nop;");'):
            self.assertEqual(len(self.problems("src/forward/a.h", f"// A.\n{text}\n")), 1, text)
            self.assertEqual(self.problems("src/hopper/a.h", f"// A.\n{text}\n"), [], text)
        self.assertEqual(self.problems("src/forward/a.h", "// A.\nint x;  // no asm (here)\n"), [])

    def test_an_opening_sentence_is_asked_for(self):
        self.assertEqual(len(self.problems("tests/core/a.cpp", "#include <vector>\n")), 1)

    def test_an_unknown_room_is_asked_about(self):
        self.assertEqual(len(self.problems("src/attic/a.h", "// A.\n")), 1)

    def test_this_project_keeps_them(self):
        self.assertEqual(house_rules.check(TOP), [])


class Readme(unittest.TestCase):
    readme = (TOP / "README.md").read_text(encoding="utf-8")

    def blocks(self, language):
        return re.findall(rf"^```{language}\n(.*?)^```$", self.readme, re.DOTALL | re.MULTILINE)

    def test_the_example_is_the_one_that_is_built(self):
        self.assertIn((TOP / "examples/attention.cpp").read_text(encoding="utf-8"), self.blocks("cpp"))

    def test_links_lead_somewhere(self):
        for document in [TOP / "README.md", TOP / "CONTRIBUTING.md", *sorted((TOP / "docs").glob("*.md"))]:
            prose = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
            for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
                if "://" not in target:
                    self.assertTrue((document.parent / target).exists(), f"{document.name}: {target}")


class Dev(unittest.TestCase):
    def run_dev(self, *arguments):
        return subprocess.run([TOP / "dev", *arguments], capture_output=True, text=True, check=False)

    def test_an_unknown_verb_is_refused_with_the_list(self):
        for arguments in (("frobnicate",), ()):
            result = self.run_dev(*arguments)
            self.assertEqual(result.returncode, 2)
            self.assertEqual(result.stdout, "")
            for verb in ("run", "test", "build", "bench", "format", "lint", "clean", "help"):
                self.assertRegex(result.stderr, rf"(?m)^  {verb}\b")

    def test_help_goes_to_stdout(self):
        result = self.run_dev("help")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertIn("usage: ./dev", result.stdout)

    def test_an_unknown_stage_is_refused(self):
        result = self.run_dev("test", "everything")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("everything", result.stderr)


if __name__ == "__main__":
    unittest.main()
