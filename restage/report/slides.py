"""The report as slides (PowerPoint's format, which LibreOffice and Keynote open): table, edits, diagnosis, record."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from restage.records import MissingExtra, write_atomically
from restage.report.pictures import load_images
from restage.report.read import find_figure
from restage.report.summary import EditFigure, Summary, cell_parts
from restage.report.words import draw_loss
from restage.scores.definitions import METRICS

__all__ = ["write_slides"]

WIDTH_IN, HEIGHT_IN = 13.333, 7.5
MARGIN_IN = 0.7
INK, SOFT, ACCENT, LINE = "191A1C", "5C5E62", "A63D1E", "E3E1DB"
MAX_TABLE_ROWS = 12
MAX_PICTURE_PX = 1600


def write_slides(summary: Summary, path: Path) -> Path:
    """Write the slides, with python-pptx."""
    try:
        import pptx
    except ImportError:
        raise MissingExtra("python-pptx", "slides") from None
    deck = _Deck(pptx.Presentation(), summary)
    deck.title()
    if summary.rows:
        deck.table()
    for figure in summary.figures:
        deck.edit(figure)
    if summary.contents.diagnosis:
        deck.diagnosis(summary.contents.diagnosis.sentence)
    if summary.sheet:
        sheet = side_by_side(load_images([summary.sheet])[0])
        deck.picture_slide("Image pairs", sheet, "Accepted and rejected image pairs, each with its reason")
    if len(summary.contents.train) > 1:
        loss = Image.open(io.BytesIO(draw_loss(summary.contents.train, form="png")))
        deck.picture_slide("Training of the edit model", loss.convert("RGB"), "Training loss over steps")
    deck.record()
    with write_atomically(path) as temporary:
        deck.presentation.save(str(temporary))
    return path


def side_by_side(sheet: Image.Image) -> Image.Image:
    """A tall sheet as two halves beside each other, cut where a row of pixels is empty; others as they are."""
    if sheet.height < sheet.width:
        return sheet
    pixels = np.asarray(sheet.convert("L"))
    empty = np.flatnonzero(pixels.min(axis=1) == pixels.max(axis=1))
    middle = sheet.height // 2
    cut = int(empty[np.abs(empty - middle).argmin()]) if len(empty) else middle
    both = Image.new("RGB", (2 * sheet.width, max(cut, sheet.height - cut)), sheet.getpixel((0, 0)))
    both.paste(sheet.crop((0, 0, sheet.width, cut)), (0, 0))
    both.paste(sheet.crop((0, cut, sheet.width, sheet.height)), (sheet.width, 0))
    return both


class _Deck:
    """Adds slides of one look to a presentation."""

    def __init__(self, presentation: Any, summary: Summary) -> None:
        from pptx.util import Inches

        self.presentation, self.summary, self.inches = presentation, summary, Inches
        presentation.slide_width, presentation.slide_height = Inches(WIDTH_IN), Inches(HEIGHT_IN)
        presentation.core_properties.title = summary.title
        presentation.core_properties.author = "Restage"
        self.layout = presentation.slide_layouts[5]

    def slide(self, title: str, *, top: float = 0.45, size: int = 30) -> Any:
        from pptx.enum.text import MSO_ANCHOR

        slide = self.presentation.slides.add_slide(self.layout)
        shape = slide.shapes.title
        shape.left, shape.top = self.inches(MARGIN_IN), self.inches(top)
        shape.width, shape.height = self.inches(WIDTH_IN - 2 * MARGIN_IN), self.inches(0.95)
        shape.text_frame.word_wrap = True
        shape.text_frame.vertical_anchor = MSO_ANCHOR.MIDDLE
        _set_text(shape.text_frame, [title], size=size, color=INK, font="Georgia")
        return slide

    def text(self, slide: Any, lines: Sequence[str], *, top: float, size: int = 16, height: float = 1.0) -> None:
        box = slide.shapes.add_textbox(
            self.inches(MARGIN_IN),
            self.inches(top),
            self.inches(WIDTH_IN - 2 * MARGIN_IN),
            self.inches(min(height, HEIGHT_IN - 0.1 - top)),
        )
        box.text_frame.word_wrap = True
        _set_text(box.text_frame, lines, size=size, color=SOFT)

    def picture(self, slide: Any, image: Image.Image, alt: str, *, top: float, bottom: float) -> None:
        """A picture between two heights, as large as it fits, in the middle, with its alternative text."""
        if max(image.size) > MAX_PICTURE_PX:
            image = image.copy()
            image.thumbnail((MAX_PICTURE_PX, MAX_PICTURE_PX), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        room_x, room_y = WIDTH_IN - 2 * MARGIN_IN, bottom - top
        scale = min(room_x / image.width, room_y / image.height)
        width, height = image.width * scale, image.height * scale
        corner = (WIDTH_IN - width) / 2, top + (room_y - height) / 2
        buffer.seek(0)
        shape = slide.shapes.add_picture(buffer, *map(self.inches, corner), *map(self.inches, (width, height)))
        shape._element.nvPicPr.cNvPr.set("descr", alt)  # noqa: SLF001 - python-pptx has no name for it

    def title(self) -> None:
        slide = self.slide(self.summary.title, top=0.9, size=44)
        note = "Miniature: a small procedural world with exact truth; nothing here is a result on photographs."
        self.text(slide, [note] if self.summary.is_miniature else [], top=1.95, size=18)
        if self.summary.figures:
            self.picture(slide, self.summary.figures[0].picture, self.summary.figures[0].alt, top=2.8, bottom=6.5)
        self.text(slide, [self.summary.run_id], top=6.75, size=12)

    def table(self) -> None:
        """Methods x metrics; a column's best competitors are colored, the second underlined."""
        summary = self.summary
        slide = self.slide("Methods on held-out views")
        rows = summary.rows[:MAX_TABLE_ROWS]
        arrows, known = {"higher": " ↑", "lower": " ↓", "neither": ""}, [METRICS[name] for name in summary.metrics]
        heads = ["method", "editor"]
        heads += [f"{m.label}{' dB' if m.unit == 'dB' else ''}{arrows[m.better]}" for m in known]
        room = WIDTH_IN - 2 * MARGIN_IN, min(4.8, 0.52 * (len(rows) + 1))
        shape = slide.shapes.add_table(
            len(rows) + 1, len(heads), self.inches(MARGIN_IN), self.inches(1.5), *map(self.inches, room)
        )
        _plain_table(shape)
        for column, head in enumerate(heads):
            _set_cell(shape.table.cell(0, column), head, color=SOFT, is_left=column < 2)
        for number, row in enumerate(rows, start=1):
            ink = SOFT if row.is_anchor else INK
            editor = "" if row.method == "nothing" or row.editor == "none" else row.editor
            for column, text in enumerate((row.method, editor)):
                _set_cell(shape.table.cell(number, column), text, color=ink, is_left=True)
            if row.flag:
                _set_text(shape.table.cell(number, 0).text_frame, ["", *row.flag.split(", ")], size=10, color=SOFT)
            for column, metric in enumerate(summary.metrics, start=2):
                mean, error = cell_parts(row.estimates[metric], metric)
                standing = summary.standings[metric].get((row.method, row.editor))
                cell, color = shape.table.cell(number, column), ACCENT if standing == "best" else ink
                _set_cell(cell, f"{mean} ± {error}" if error else mean or "–", color=color)
                font = cell.text_frame.paragraphs[0].runs[0].font
                font.bold, font.underline = standing == "best", standing == "second"
        _set_widths(shape.table, room[0])
        note = f"{summary.scope} Bold: best, or tied with it; underlined: second. Anchors in gray."
        self.text(slide, [note], top=6.6, size=13, height=0.6)

    def edit(self, figure: EditFigure) -> None:
        entry = figure.entry
        slide = self.slide(f"“{entry.request.instruction}”")
        self.picture(slide, figure.picture, figure.alt, top=1.45, bottom=6.45)
        self.text(slide, [f"{entry.scene}. Results: {', '.join(figure.records)}"], top=6.65, size=11, height=0.5)

    def diagnosis(self, sentence: str) -> None:
        slide = self.slide("Diagnosis")
        self.text(slide, [sentence], top=1.35, size=17, height=1.2)
        if path := find_figure(self.summary.contents):
            self.picture(slide, load_images([path])[0], sentence, top=2.6, bottom=7.2)

    def picture_slide(self, title: str, image: Image.Image, alt: str) -> None:
        self.picture(self.slide(title), image, alt, top=1.45, bottom=7.1)

    def record(self) -> None:
        slide = self.slide("Record")
        facts = [f"{name}: {value}" for name, value in self.summary.facts.items()]
        self.text(slide, [*facts, "restage verify checks that nothing was changed since."], top=1.5, size=16)


def _set_text(frame: Any, lines: Sequence[str], *, size: int, color: str, font: str = "Calibri") -> None:
    from pptx.dml.color import RGBColor
    from pptx.enum.text import PP_ALIGN
    from pptx.util import Pt

    for number, line in enumerate(lines):
        paragraph = frame.paragraphs[0] if number == 0 else frame.add_paragraph()
        paragraph.alignment = PP_ALIGN.LEFT
        run = paragraph.add_run()
        run.text = "".join(character for character in line if character.isprintable())
        run.font.size, run.font.name = Pt(size), font
        run.font.color.rgb = RGBColor.from_string(color)


def _set_cell(cell: Any, text: str, *, color: str, is_left: bool = False) -> None:
    from pptx.enum.text import MSO_ANCHOR, PP_ALIGN

    _set_text(cell.text_frame, [text], size=13, color=color)
    cell.margin_left = cell.margin_right = 45720  # 0.05 inch
    cell.text_frame.paragraphs[0].alignment = PP_ALIGN.LEFT if is_left else PP_ALIGN.RIGHT
    cell.vertical_anchor = MSO_ANCHOR.MIDDLE


def _set_widths(table: Any, room_in: float) -> None:
    """Columns as wide as their longest text asks for, over the room that there is."""
    from pptx.util import Inches

    texts = [[row.cells[column].text for row in table.rows] for column in range(len(table.columns))]
    lengths = [2 + max(len(line) for text in column for line in text.splitlines() or [""]) for column in texts]
    for column, length in zip(table.columns, lengths, strict=True):
        column.width = Inches(room_in * length / sum(lengths))


def _plain_table(shape: Any) -> None:
    """A table without PowerPoint's colours and bands: its style "No Style, No Grid"."""
    style = shape._element.graphic.graphicData.tbl.tblPr.find(  # noqa: SLF001 - python-pptx has no name for it
        "{http://schemas.openxmlformats.org/drawingml/2006/main}tableStyleId"
    )
    style.text = "{2D5ABB26-0587-4C30-8999-92F81FD0307C}"
    shape.table.horz_banding = False
    shape.table.first_row = True
