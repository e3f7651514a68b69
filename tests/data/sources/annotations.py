"""A database of radiologists' contours in pylidc's schema, with simple shapes."""

import contextlib
import sqlite3

OPINIONS = {"benign": (1, 2), "malignant": (5, 3), "undecided": (2, 4)}
TABLES = """
CREATE TABLE scans (id INTEGER PRIMARY KEY, series_instance_uid TEXT, patient_id TEXT, slice_thickness FLOAT,
                    pixel_spacing FLOAT);
CREATE TABLE annotations (id INTEGER PRIMARY KEY, scan_id INTEGER, malignancy INTEGER);
CREATE TABLE contours (id INTEGER PRIMARY KEY, annotation_id INTEGER, inclusion BOOLEAN, image_z_position FLOAT,
                       coords TEXT);
CREATE TABLE zvals (id INTEGER PRIMARY KEY, scan_id INTEGER, val FLOAT);
"""


def ring(left, top, width, height):
    """The closed contour with width x height pixels strictly inside, the first at (left, top)."""
    right, bottom = left + width, top + height
    points = [(x, top - 1) for x in range(left - 1, right + 1)]
    points += [(right, y) for y in range(top, bottom + 1)]
    points += [(x, bottom) for x in range(right - 1, left - 2, -1)]
    points += [(left - 1, y) for y in range(bottom - 1, top - 2, -1)]
    return points


def box(left, top, width, height, levels, *, inclusion=True):
    return [(level, inclusion, ring(left, top, width, height)) for level in levels]


def scan(*annotations, patient="P1", series="1", pixel=1.0, spacing=1.0, thickness=None):
    """A scan of 64 slices from z = -100 mm on; an annotation is (malignancy, [(level, inclusion, points)])."""
    return {
        "row": (series, patient, spacing if thickness is None else thickness, pixel),
        "z": [-100 + spacing * level for level in range(64)],
        "annotations": annotations,
    }


def write_database(path, scans):
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(TABLES)
        for entry in scans:
            key = database.execute("INSERT INTO scans VALUES (NULL, ?, ?, ?, ?)", entry["row"]).lastrowid
            database.executemany("INSERT INTO zvals VALUES (NULL, ?, ?)", [(key, z) for z in reversed(entry["z"])])
            for malignancy, contours in entry["annotations"]:
                annotation = database.execute("INSERT INTO annotations VALUES (NULL, ?, ?)", (key, malignancy))
                database.executemany(
                    "INSERT INTO contours VALUES (NULL, ?, ?, ?, ?)",
                    [
                        (annotation.lastrowid, inclusion, entry["z"][level], "\n".join(f"{x},{y}" for x, y in points))
                        for level, inclusion, points in contours
                    ],
                )
        database.commit()
    return path


def edge_of(number):
    """Edge of a patient's nodule; even, so that its faces fall between voxels."""
    return 4 + 2 * (number % 5) + 2 * (number >= 24)


def cohort(*, reverse=False):
    """40 patients with one nodule each, 16 of them malignant, and 5 undecided; P00 and P30 have a second scan."""
    scans = []
    for number in range(45):
        kind = "undecided" if number >= 40 else "malignant" if number >= 24 else "benign"
        edge = edge_of(number)
        readers = [(opinion, box(100, 50, edge, edge, range(20, 20 + edge))) for opinion in OPINIONS[kind]]
        for series in ("2", "1") if number in (0, 30) else ("1",):
            scans.append(scan(*(readers[::-1] if reverse else readers), patient=f"P{number:02}", series=series))
    return scans[::-1] if reverse else scans
