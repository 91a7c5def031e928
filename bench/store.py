"""Raw measurements in one JSON file, written anew after each round, so that an interrupted run loses at most one."""

import json
import os


class Store:
    def __init__(self, path, resume, machine):
        """Takes up what is there, or moves it aside. Rounds of another machine do not mix with this one's."""
        self.path = path
        self.data = {"machine": machine, "rounds": {}}
        if not path.exists():
            return
        found = json.loads(path.read_text())
        if resume and found["machine"]["processor"] == machine["processor"]:
            self.data["rounds"] = found["rounds"]
        else:
            path.replace(path.with_suffix(".before.json"))

    def rounds(self, case):
        return self.data["rounds"].get(case, [])

    def add(self, case, measured):
        self.data["rounds"].setdefault(case, []).append(measured)
        self.write()

    def write(self):
        """By renaming, so that the file is whole at any moment."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        with open(part, "w") as file:
            json.dump(self.data, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)
