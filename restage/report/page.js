// Swaps pictures when a view, a method or a panel is chosen, and moves the before / after slider. No libraries.
"use strict";

function setUpSlider(frame) {
  const range = frame.querySelector("input[type=range]");
  if (!range) return;
  const apply = () => {
    frame.style.setProperty("--split", range.value + "%");
    range.setAttribute("aria-valuetext", range.value + " percent before");
  };
  const follow = (event) => {
    const box = frame.getBoundingClientRect();
    range.value = Math.round((100 * (event.clientX - box.left)) / box.width);
    apply();
  };
  range.addEventListener("input", apply);
  frame.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    frame.setPointerCapture(event.pointerId);
    range.focus({ preventScroll: true, focusVisible: false });
    follow(event);
  });
  frame.addEventListener("pointermove", (event) => {
    if (frame.hasPointerCapture(event.pointerId)) follow(event);
  });
  apply();
}

function setUpEdit(article) {
  const role = (name) => article.querySelector(`[data-role="${name}"]`);
  const data = JSON.parse(role("data").textContent);
  const instruction = article.querySelector(".instruction").textContent;
  const chosen = (name) => article.querySelector(`input[name^="${name}-"]:checked`);

  const show = (image, path, alt) => {
    if (!image) return;
    image.hidden = !path;
    if (path) {
      image.src = path;
      image.alt = alt;
    }
  };

  const viewNumber = () => Number(chosen("view")?.value ?? 0);
  const methodNumber = () => Number(chosen("method").value);
  const figure = role("turn");
  const scene = figure && setUpTurn(figure, viewNumber, methodNumber);

  const update = () => {
    const { after, poster } = data.methods[methodNumber()];
    show(role("turn-poster"), after[viewNumber()] ?? poster, `the scene after ${instruction}`);
    if (!data.views.length) return; // nothing was held out
    const view = viewNumber();
    const method = data.methods[methodNumber()];
    const panel = chosen("panel").value;
    const name = data.views[view];
    show(role("before"), data.before[view], `view ${name} before the edit`);
    show(role("after"), method.after[view], `view ${name} after ${instruction} by ${method.label}`);
    const panelPath = panel === "truth" ? data.truth[view] : method[panel][view];
    const panelName = { truth: "exact truth", change: "difference to before", error: "difference to the truth", mask: "mask of what changed" };
    show(role("panel"), panelPath, `view ${name}, ${panelName[panel]}, ${method.label}`);
    article.querySelectorAll("[data-legend]").forEach((legend) => {
      legend.hidden = legend.dataset.legend !== panel;
    });
    role("label").textContent = method.label;
    role("seed").textContent = method.seed;
    role("record").href = `#record-${method.record}`;
    role("problem").hidden = !method.problem;
    role("problem").textContent = `No result: ${method.problem}`;
  };

  const updateMethod = () => {
    const method = data.methods[methodNumber()];
    const video = role("orbit");
    if (video) {
      video.hidden = !method.orbit;
      role("no-orbit").hidden = Boolean(method.orbit);
      if (method.orbit) {
        const time = video.currentTime;
        const wasPlaying = !video.paused;
        video.poster = method.poster ?? "";
        video.src = method.orbit;
        video.currentTime = time;
        if (wasPlaying) video.play().catch(() => {});
      } else {
        video.pause();
      }
    }
    const strip = role("editor-views");
    if (strip) {
      strip.replaceChildren(
        ...method.editorViews.map(([picture, mask]) => {
          const cell = document.createElement("span");
          for (const [path, alt] of [[picture, strip.dataset.alt], [mask, "mask that the editor predicted"]]) {
            if (!path) continue;
            const image = document.createElement("img");
            image.src = path;
            image.alt = alt;
            cell.append(image);
          }
          return cell;
        }),
      );
      if (!method.editorViews.length) strip.textContent = "This method has none.";
    }
  };

  article.addEventListener("change", (event) => {
    if (event.target.type !== "radio") return;
    const isOtherMethod = event.target.name.startsWith("method-");
    update();
    if (isOtherMethod) updateMethod();
    scene?.update(isOtherMethod);
  });
  article.querySelectorAll("[data-compare]").forEach(setUpSlider);
  // A browser that goes back to the page may remember another choice than the one the page was written with.
  update();
  if (!chosen("method").defaultChecked) updateMethod();
}

document.querySelectorAll("[data-edit]").forEach(setUpEdit);
document.querySelectorAll("#scenes [data-role=turn]").forEach((figure) => setUpTurn(figure, () => 0, () => 0));

// Clips play while they can be seen, unless the reader asked for less motion.
if ("IntersectionObserver" in window && !matchMedia("(prefers-reduced-motion: reduce)").matches) {
  const observer = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting && !target.hidden) target.play().catch(() => {});
        else target.pause();
      }
    },
    { threshold: 0.4 },
  );
  document.querySelectorAll("video").forEach((video) => observer.observe(video));
}

// A number opens the rows that it is made of; without this script it leads to the list of records.
function setUpRows() {
  const data = JSON.parse(document.querySelector("#rows-data").textContent);
  const dialog = document.querySelector("#rows");
  const part = (name) => dialog.querySelector(`[data-part="${name}"]`);
  const cell = (text, kind = "td") => Object.assign(document.createElement(kind), { textContent: text });
  const minus = (text) => text.replace("-", "\u2212");

  const line = ([result, value, reason, row]) => {
    const [scene, edit, , , seed, record] = data.results[result];
    const shown = document.createElement("tr");
    const link = document.createElement("td");
    if (record) {
      const anchor = Object.assign(document.createElement("a"), { href: `#record-${record}`, textContent: "record" });
      anchor.addEventListener("click", () => dialog.close());
      link.append(anchor);
    }
    const number = cell(value === null ? `\u2013 ${reason}` : minus(value.toPrecision(6)));
    number.className = value === null ? "reason" : "";
    const name = cell(scene, "th");
    name.append(Object.assign(document.createElement("span"), { className: "row", textContent: `${edit}, seed ${seed}` }));
    shown.append(name, number, cell(row), link);
    return shown;
  };

  document.addEventListener("click", (event) => {
    const trace = event.target.closest(".trace");
    if (!trace || !dialog.showModal) return;
    event.preventDefault();
    const { metric, method, editor } = trace.dataset;
    const known = data.metrics[metric] ?? { label: metric, unit: "", definition: "", source: "" };
    const rows = (data.cells[metric] ?? []).filter(([result]) => data.results[result][2] === method && data.results[result][3] === editor);
    const scored = rows.filter((row) => row[1] !== null);
    const scenes = new Set(scored.map((row) => data.results[row[0]][0])).size;
    dialog.querySelector("h2").textContent = `${known.label[0].toUpperCase()}${known.label.slice(1)}, ${method}${editor && editor !== "none" ? ` with ${editor}` : ""}`;
    const mean = scored.reduce((sum, row) => sum + row[1], 0) / scored.length;
    const several = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
    part("mean").textContent = scored.length
      ? `Mean ${minus(mean.toPrecision(5))} of ${several(scored.length, "row")} in ${several(scenes, "scene")}${rows.length > scored.length ? `; ${rows.length - scored.length} could not be scored` : ""}.`
      : "No row could be scored.";
    part("definition").textContent = [known.definition, known.unit && `Unit: ${known.unit}.`, known.source].filter(Boolean).join(" ");
    dialog.querySelector("tbody").replaceChildren(...rows.map(line));
    dialog.showModal();
    dialog.scrollTop = 0;
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}
if (document.querySelector("#rows")) setUpRows();

// A project page has sliders and scenes without a choice of methods.
document.querySelectorAll(".shown-edit [data-compare]").forEach(setUpSlider);
document.querySelectorAll(".shown-edit [data-role=turn]").forEach((figure) => setUpTurn(figure, () => 0, () => 0));
for (const button of document.querySelectorAll("[data-copy]")) {
  const entry = document.getElementById(button.dataset.copy);
  button.hidden = false;
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(entry);
    // A page that was opened from disk may have no clipboard: the text stays selected then.
    const isCopied = await navigator.clipboard?.writeText(entry.textContent).then(() => true, () => false);
    document.getElementById("copied").textContent = isCopied || document.execCommand("copy") ? "Copied." : "Press Ctrl+C.";
  });
}

// Films of one clip play together: the others follow the first one.
const FOLLOW_S = 0.06;
for (const edit of document.querySelectorAll(".clip-edit")) {
  const [lead, ...others] = edit.querySelectorAll("video");
  const button = edit.querySelector("[data-clip=play]");
  const follow = () => others.forEach((film) => {
    if (Math.abs(film.currentTime - lead.currentTime) > FOLLOW_S) film.currentTime = lead.currentTime;
  });
  const play = () => [lead, ...others].forEach((film) => film.play().catch(() => {}));
  const stop = () => { [lead, ...others].forEach((film) => film.pause()); follow(); };
  lead.addEventListener("timeupdate", follow);
  button.addEventListener("click", () => {
    button.textContent = lead.paused ? "Stop" : "Play";
    (lead.paused ? play : stop)();
  });
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) button.textContent = "Play";
  else play();
}

// A link to a record opens it.
function openRecord() {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target || target.tagName !== "DETAILS") return;
  target.open = true;
  target.scrollIntoView();
  target.querySelector("summary").focus({ preventScroll: true });
}
addEventListener("hashchange", openRecord);
document.addEventListener("click", (event) => {
  if (event.target.closest('a[href^="#"]')) setTimeout(openRecord);
});
openRecord();

// The run's own records are opened for print, so that they are on paper too; those of all results would fill a book.
addEventListener("beforeprint", () => document.querySelectorAll("#records details:not(.record)").forEach((part) => (part.open = true)));
