// Draws the scenes of edits so that they can be turned around: before and after with one camera, from scripts that hold
// SPZ files. WebGL 2 and the main thread alone, since a page from disk may start no worker and fetch no file.
"use strict";

const COLUMNS = 512; // splats in a row of the textures
const NEAR = 0.05; // as in the rasterizer, like the margins and the blur below
const CULL_MARGIN = 0.25;
const CLAMP_MARGIN = 0.15;
const BLUR_PX = 0.3;

const VERTEX_SHADER = `#version 300 es
precision highp float;
precision highp int;
uniform highp sampler2D splats;
uniform sampler2D colors;
uniform mat4 view;
uniform vec2 focal, center, size, image;
uniform float blur, near, cull, clamping;
in uint index;
out vec4 color;
out vec2 place;
void main() {
  ivec2 at = ivec2(int(index) % ${COLUMNS}, int(index) / ${COLUMNS});
  vec4 first = texelFetch(splats, ivec2(3 * at.x, at.y), 0);
  vec4 second = texelFetch(splats, ivec2(3 * at.x + 1, at.y), 0);
  vec4 third = texelFetch(splats, ivec2(3 * at.x + 2, at.y), 0);
  color = vec4(texelFetch(colors, at, 0).rgb, first.w);
  vec3 seen = (view * vec4(first.xyz, 1.0)).xyz;
  gl_Position = vec4(0.0, 0.0, 2.0, 1.0);
  if (seen.z < near || color.a * 255.0 <= 1.0) return;
  vec2 slope = seen.xy / seen.z;
  vec2 low = -center / focal, high = (size - center) / focal, reach = image / focal;
  if (any(lessThan(slope, low - cull * reach)) || any(greaterThan(slope, high + cull * reach))) return;
  vec2 clamped = clamp(slope, low - clamping * reach, high + clamping * reach);
  vec3 right = vec3(view[0][0], view[1][0], view[2][0]);
  vec3 down = vec3(view[0][1], view[1][1], view[2][1]);
  vec3 forward = vec3(view[0][2], view[1][2], view[2][2]);
  vec3 across = focal.x / seen.z * (right - clamped.x * forward);
  vec3 along = focal.y / seen.z * (down - clamped.y * forward);
  mat3 covariance = mat3(second.xyz, second.y, second.w, third.x, second.z, third.xy);
  float xx = dot(across, covariance * across) + blur;
  float xy = dot(across, covariance * along);
  float yy = dot(along, covariance * along) + blur;
  float middle = 0.5 * (xx + yy), spread = length(vec2(0.5 * (xx - yy), xy));
  vec2 axis = abs(xy) > 1e-6 ? normalize(vec2(xy, middle + spread - xx)) : xx >= yy ? vec2(1, 0) : vec2(0, 1);
  vec2 radii = sqrt(vec2(middle + spread, max(middle - spread, 1e-6)));
  place = (vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0) * sqrt(2.0 * log(255.0 * color.a));
  vec2 pixel = center + focal * slope + place.x * radii.x * axis + place.y * radii.y * vec2(-axis.y, axis.x);
  gl_Position = vec4((pixel / size * 2.0 - 1.0) * vec2(1, -1), 0.0, 1.0);
}`;

const FRAGMENT_SHADER = `#version 300 es
precision highp float;
in vec4 color;
in vec2 place;
out vec4 shown;
void main() {
  float alpha = min(0.99, color.a * exp(-0.5 * dot(place, place)));
  if (alpha * 255.0 < 1.0) discard;
  shown = vec4(color.rgb * alpha, alpha);
}`;

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const plus = (a, b, factor = 1) => a.map((value, axis) => value + factor * b[axis]);
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];

/** A vector turned around a unit axis (Rodrigues). */
function turned(vector, axis, angle) {
  const along = plus(vector.map((value) => value * Math.cos(angle)), cross(axis, vector), Math.sin(angle));
  return plus(along, axis, dot(axis, vector) * (1 - Math.cos(angle)));
}

// Scenes by the path of their script, each of which calls `restageScene` with the content.
const scenes = new Map();
let received = null;
window.restageScene = (content) => (received = content);

function readScript(path) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.onload = () => resolve(received);
    script.onerror = () => reject(new Error(`${path} is not there`));
    script.src = path;
    document.head.append(script);
    script.remove();
  });
}

/** The scene of a script; the six that were used last are kept. */
function loadScene(path) {
  const loading = scenes.get(path) ?? readScript(path).then(unpack);
  scenes.delete(path);
  scenes.set(path, loading);
  loading.catch(() => scenes.delete(path));
  if (scenes.size > 6) {
    const [oldest, scene] = scenes.entries().next().value;
    scenes.delete(oldest);
    scene.then(release, () => {});
  }
  return loading;
}

/** Splats of an SPZ of version 3 (docs/formats.md), as its writer in this package makes them. */
async function unpack(content) {
  const packed = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const head = new DataView(bytes.buffer);
  const count = head.getUint32(8, true);
  const numRest = [0, 3, 8, 15][bytes[12]];
  let start = 16;
  const part = (size) => bytes.subarray(start, (start += size * count));
  const [positions, alphas, colors, scales, turns, rest] = [9, 1, 3, 3, 4, 3 * numRest].map(part);
  const rows = Math.ceil(count / COLUMNS);
  const scene = { count, numRest, rest, rows, centers: new Float32Array(3 * count), data: new Float32Array(12 * COLUMNS * rows) };
  scene.base = Float32Array.from(colors, (byte) => 0.5 + 0.28209479177387814 * ((byte / 255 - 0.5) / 0.15));
  for (let splat = 0; splat < count; splat++) {
    for (let axis = 0; axis < 3; axis++) {
      const at = 9 * splat + 3 * axis;
      const fixed = positions[at] | (positions[at + 1] << 8) | (positions[at + 2] << 16);
      scene.centers[3 * splat + axis] = ((fixed << 8) >> 8) * 2 ** -bytes[13];
    }
    const rotation = rotationOf(turns, 4 * splat);
    const variances = [0, 1, 2].map((axis) => Math.exp(2 * (scales[3 * splat + axis] / 16 - 10)));
    const entry = (i, j) => rotation[i].reduce((sum, value, axis) => sum + value * rotation[j][axis] * variances[axis], 0);
    scene.data.set([...scene.centers.subarray(3 * splat, 3 * splat + 3), alphas[splat] / 255], 12 * splat);
    scene.data.set([entry(0, 0), entry(0, 1), entry(0, 2), entry(1, 1), entry(1, 2), entry(2, 2)], 12 * splat + 4);
  }
  return scene;
}

/** Rows of the rotation matrix of a quaternion packed as its three smaller components, in the order x, y, z, w. */
function rotationOf(turns, at) {
  const word = (turns[at] | (turns[at + 1] << 8) | (turns[at + 2] << 16) | (turns[at + 3] << 24)) >>> 0;
  const parts = [20, 10, 0].map((shift) => {
    const bits = (word >>> shift) & 0x3ff;
    return ((bits & 0x1ff) * Math.SQRT1_2) / 0x1ff * (bits & 0x200 ? -1 : 1);
  });
  const largest = Math.sqrt(Math.max(0, 1 - dot(parts, parts)));
  parts.splice(word >>> 30, 0, largest);
  const [x, y, z, w] = parts;
  return [
    [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
    [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
    [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
  ];
}

/** Values of the spherical harmonics of degree 1 to 3 in a direction, in the order and with the signs of 3DGS. */
function harmonics([x, y, z]) {
  const [xx, yy, zz] = [x * x, y * y, z * z];
  return [
    ...[-y, z, -x].map((value) => 0.4886025119029199 * value),
    ...[x * y, -y * z].map((value) => 1.0925484305920792 * value),
    0.31539156525252005 * (2 * zz - xx - yy),
    -1.0925484305920792 * x * z,
    0.5462742152960396 * (xx - yy),
    -0.5900435899266435 * y * (3 * xx - yy),
    2.890611442640554 * x * y * z,
    -0.4570457994644658 * y * (4 * zz - xx - yy),
    0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
    -0.4570457994644658 * x * (4 * zz - xx - yy),
    1.445305721320277 * z * (xx - yy),
    -0.5900435899266435 * x * (xx - 3 * yy),
  ];
}

/** Colors as bytes, as they are seen from a position. */
function colorsFrom(scene, position) {
  const { base, centers, numRest, rest } = scene;
  const bytes = new Uint8ClampedArray(4 * COLUMNS * scene.rows);
  for (let splat = 0; splat < scene.count; splat++) {
    const color = [base[3 * splat], base[3 * splat + 1], base[3 * splat + 2]];
    if (numRest) {
      const offset = plus(centers.subarray(3 * splat, 3 * splat + 3), position, -1);
      const values = harmonics(Array.from(offset, (value) => value / Math.hypot(...offset)));
      for (let at = 0; at < 3 * numRest; at++) {
        color[at % 3] += (values[Math.floor(at / 3)] * (rest[3 * numRest * splat + at] - 128)) / 128;
      }
    }
    for (let channel = 0; channel < 3; channel++) bytes[4 * splat + channel] = 255 * color[channel];
  }
  return bytes;
}

/** Splats from far to near: a counting sort of their depths in 65,536 steps. */
function farToNear(scene, camera) {
  const { count, centers } = scene;
  const forward = camera.axes[2];
  const shift = dot(forward, camera.position);
  const depths = new Float32Array(count);
  let farthest = NEAR;
  for (let splat = 0; splat < count; splat++) {
    const at = 3 * splat;
    depths[splat] = forward[0] * centers[at] + forward[1] * centers[at + 1] + forward[2] * centers[at + 2] - shift;
    if (depths[splat] > farthest) farthest = depths[splat];
  }
  // In steps of the logarithm, since what lies far away needs no fine order.
  const scale = 65535 / Math.log(farthest / NEAR + 1e-6);
  const bins = new Int32Array(count);
  const starts = new Uint32Array(65537);
  for (let splat = 0; splat < count; splat++) {
    bins[splat] = depths[splat] < NEAR ? -1 : 65535 - Math.min(65535, Math.floor(scale * Math.log(depths[splat] / NEAR)));
    if (bins[splat] >= 0) starts[bins[splat] + 1]++;
  }
  for (let bin = 0; bin < 65536; bin++) starts[bin + 1] += starts[bin];
  const order = new Uint32Array(starts[65536]);
  for (let splat = 0; splat < count; splat++) if (bins[splat] >= 0) order[starts[bins[splat]]++] = splat;
  return order;
}

// The one canvas of the page, which goes to the edit that is turned: browsers keep only some 16 of them alive.
let canvas = null;
let gl = null;
let program = null;
let orderBuffer = null;

function startDrawing() {
  canvas = document.createElement("canvas");
  canvas.tabIndex = 0;
  gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false, preserveDrawingBuffer: true });
  if (!gl) throw new Error("this browser draws no WebGL 2");
  canvas.addEventListener("webglcontextlost", () => {
    scenes.clear();
    [canvas, gl] = [null, null];
    turning?.leave("The browser has taken the drawing back; press the button to begin again.");
  });
  program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX_SHADER], [gl.FRAGMENT_SHADER, FRAGMENT_SHADER]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error("this browser's WebGL cannot draw splats");
  gl.useProgram(program);
  orderBuffer = gl.createBuffer();
  gl.bindBuffer(gl.ARRAY_BUFFER, orderBuffer);
  const index = gl.getAttribLocation(program, "index");
  gl.enableVertexAttribArray(index);
  gl.vertexAttribIPointer(index, 1, gl.UNSIGNED_INT, 0, 0);
  gl.vertexAttribDivisor(index, 1);
  gl.uniform1i(gl.getUniformLocation(program, "splats"), 0);
  gl.uniform1i(gl.getUniformLocation(program, "colors"), 1);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  gl.enable(gl.SCISSOR_TEST);
}

function texture(unit) {
  const made = gl.createTexture();
  gl.activeTexture(gl.TEXTURE0 + unit);
  gl.bindTexture(gl.TEXTURE_2D, made);
  for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.NEAREST);
  return made;
}

function release(scene) {
  for (const name of ["dataTexture", "colorTexture"]) if (gl && scene[name]) gl.deleteTexture(scene[name]);
  scene.dataTexture = scene.colorTexture = null;
}

/** Bind what a scene is drawn from, and give the number of splats that are before the camera. */
function bind(scene, camera) {
  if (!scene.dataTexture) {
    scene.dataTexture = texture(0);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA32F, 3 * COLUMNS, scene.rows, 0, gl.RGBA, gl.FLOAT, scene.data);
    scene.colorTexture = texture(1);
    scene.coloredFrom = null;
  }
  gl.activeTexture(gl.TEXTURE0);
  gl.bindTexture(gl.TEXTURE_2D, scene.dataTexture);
  gl.activeTexture(gl.TEXTURE1);
  gl.bindTexture(gl.TEXTURE_2D, scene.colorTexture);
  const from = scene.numRest ? camera.position.join() : "anywhere";
  if (scene.coloredFrom !== from) {
    const colors = new Uint8Array(colorsFrom(scene, camera.position).buffer);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, COLUMNS, scene.rows, 0, gl.RGBA, gl.UNSIGNED_BYTE, colors);
    scene.coloredFrom = from;
  }
  const order = farToNear(scene, camera);
  gl.bufferData(gl.ARRAY_BUFFER, order, gl.STREAM_DRAW);
  return order.length;
}

/** Draw scenes, each in its columns of the canvas: `[scene, from, to]` in shares of the width. */
function draw(parts, camera, { width, height }) {
  const [canvasWidth, canvasHeight] = [canvas.width, canvas.height];
  // As large as all of the picture fits, which the pictures of the page are too.
  const scale = Math.min(canvasWidth / width, canvasHeight / height);
  const image = [scale * width, scale * height];
  const uniform = (name) => gl.getUniformLocation(program, name);
  const { axes, position, lens } = camera;
  const view = [0, 1, 2].flatMap((column) => [axes[0][column], axes[1][column], axes[2][column], 0]);
  gl.uniformMatrix4fv(uniform("view"), false, [...view, ...axes.map((axis) => -dot(axis, position)), 1]);
  gl.uniform2f(uniform("focal"), lens[0] * image[0], lens[1] * image[1]);
  gl.uniform2f(uniform("center"), canvasWidth / 2 + (lens[2] - 0.5) * image[0], canvasHeight / 2 + (lens[3] - 0.5) * image[1]);
  gl.uniform2f(uniform("size"), canvasWidth, canvasHeight);
  gl.uniform2f(uniform("image"), ...image);
  // Splats are as blurred as in the pictures, whose pixels are larger.
  gl.uniform1f(uniform("blur"), BLUR_PX * scale * scale);
  gl.uniform1f(uniform("near"), NEAR);
  gl.uniform1f(uniform("cull"), CULL_MARGIN);
  gl.uniform1f(uniform("clamping"), CLAMP_MARGIN);
  gl.viewport(0, 0, canvasWidth, canvasHeight);
  for (const [scene, from, to] of parts) {
    const [left, right] = [from, to].map((share) => Math.round(share * canvasWidth));
    if (right <= left) continue;
    gl.scissor(left, 0, right - left, canvasHeight);
    gl.clearColor(0, 0, 0, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, bind(scene, camera));
  }
}

/** The edit whose scene is being turned; one at a time. */
let turning = null;

function setUpTurn(figure, currentView, currentMethod) {
  const role = (name) => figure.querySelector(`[data-role="${name}"]`);
  const data = JSON.parse(role("turn-data").textContent);
  const [frame, open, controls, split, words, poster] = ["frame", "open", "controls", "split", "words", "poster"].map((name) => role(`turn-${name}`));
  const plain = words.textContent;
  let camera = null;
  let loaded = { before: null, after: null };
  let isAsked = false;
  let place = null; // number of the view that the camera began at

  const start = () => {
    place = currentView();
    camera = structuredClone(data.cameras[place] ?? data.cameras[0]);
    redraw();
  };
  const redraw = () => {
    if (isAsked || turning !== self) return;
    isAsked = true;
    requestAnimationFrame(() => {
      isAsked = false;
      if (turning !== self || !loaded.after) return;
      const ratio = Math.min(window.devicePixelRatio || 1, 2);
      const size = [canvas.clientWidth, canvas.clientHeight].map((side) => Math.max(1, Math.round(side * ratio)));
      if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
      const at = loaded.before ? Number(split.value) / 100 : 0;
      frame.style.setProperty("--split", `${100 * at}%`);
      split.setAttribute("aria-valuetext", `${split.value} percent before`);
      draw([[loaded.before, 0, at], [loaded.after, at, 1]], camera, data);
      canvas.dataset.drawn = Number(canvas.dataset.drawn ?? 0) + 1;
    });
  };
  /** Turn the camera around the point it looks at: `across` around the world's up, `along` over it. */
  const orbit = (across, along) => {
    const target = plus(camera.position, camera.axes[2], camera.distance);
    const gaze = Math.asin(Math.max(-1, Math.min(1, dot(camera.axes[2], data.up))));
    const limit = Math.max(1.45, Math.abs(gaze)); // off the poles, where a turn around up would spin the view
    const tilt = Math.max(-limit, Math.min(limit, gaze - along)) - gaze;
    const right = camera.axes[0];
    camera.axes = camera.axes.map((axis) => turned(turned(axis, right, tilt), data.up, -across));
    camera.position = plus(target, camera.axes[2], -camera.distance);
    redraw();
  };
  const shift = (across, along) => {
    const reach = camera.distance / camera.lens[0];
    camera.position = plus(plus(camera.position, camera.axes[0], -across * reach), camera.axes[1], -along * reach);
    redraw();
  };
  const zoom = (factor) => {
    const target = plus(camera.position, camera.axes[2], camera.distance);
    camera.distance *= factor;
    camera.position = plus(target, camera.axes[2], -camera.distance);
    redraw();
  };

  const fingers = new Map();
  const onPointer = (event) => {
    if (event.type === "pointerdown") {
      canvas.setPointerCapture(event.pointerId);
      canvas.focus({ preventScroll: true });
      fingers.set(event.pointerId, event);
    } else if (event.type === "pointermove" && fingers.has(event.pointerId)) {
      const last = fingers.get(event.pointerId);
      const [across, along] = [event.clientX - last.clientX, event.clientY - last.clientY].map((way) => way / canvas.clientWidth);
      const others = [...fingers.values()].filter((other) => other.pointerId !== event.pointerId);
      if (others.length) {
        const apart = (one) => Math.hypot(one.clientX - others[0].clientX, one.clientY - others[0].clientY);
        zoom(apart(last) / Math.max(1, apart(event)));
        shift(across / 2, along / 2);
      } else if (event.shiftKey || event.buttons === 2) shift(across, along);
      else orbit(4 * across, 4 * along);
      fingers.set(event.pointerId, event);
    } else if (event.type !== "pointermove") fingers.delete(event.pointerId);
  };
  const onWheel = (event) => {
    if (document.activeElement !== canvas) return; // a reader who scrolls past is not held up
    event.preventDefault();
    zoom(Math.exp(Math.max(-0.5, Math.min(0.5, event.deltaY * 0.0015))));
  };
  const STEP = 0.12;
  const keys = {
    ArrowLeft: () => orbit(STEP, 0),
    ArrowRight: () => orbit(-STEP, 0),
    ArrowUp: () => orbit(0, STEP),
    ArrowDown: () => orbit(0, -STEP),
    "+": () => zoom(0.9),
    "=": () => zoom(0.9),
    "-": () => zoom(1 / 0.9),
    Home: () => start(),
    b: () => flip(),
  };
  const onKey = (event) => {
    const act = keys[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  };
  const flip = () => {
    split.value = Number(split.value) > 50 ? 0 : 100;
    redraw();
  };
  const listeners = { pointerdown: onPointer, pointermove: onPointer, pointerup: onPointer, pointercancel: onPointer, wheel: onWheel, keydown: onKey };
  const resized = new ResizeObserver(() => redraw());

  /** Load what the chosen method made, and show it; says so where there is nothing to show. */
  const load = async () => {
    const path = data.after[currentMethod()];
    words.textContent = "Reading the scene.";
    if (!path) {
      loaded = { before: null, after: null };
      return self.leave("The scene of this method is not stored in the page.");
    }
    const [before, after] = await Promise.all([data.before && loadScene(data.before), loadScene(path)]);
    if (turning !== self || path !== data.after[currentMethod()]) return undefined;
    loaded = { before, after };
    words.textContent = plain;
    return redraw();
  };
  const self = {
    async begin() {
      try {
        if (!("DecompressionStream" in window)) throw new Error("this browser is too old to unpack it");
        if (!canvas) startDrawing();
        turning?.leave();
        turning = self;
        canvas.setAttribute("aria-label", figure.dataset.label);
        frame.prepend(canvas);
        for (const [name, act] of Object.entries(listeners)) canvas.addEventListener(name, act, { passive: false });
        resized.observe(canvas);
        open.hidden = true;
        poster.hidden = true;
        controls.hidden = false;
        if (!camera) start();
        await load();
        canvas?.focus({ preventScroll: true });
      } catch (error) {
        self.leave(`The scene cannot be shown here: ${error.message}.`);
      }
    },
    leave(reason) {
      if (turning === self) turning = null;
      for (const [name, act] of Object.entries(listeners)) canvas?.removeEventListener(name, act);
      resized.disconnect();
      frame.querySelector("canvas")?.remove();
      open.hidden = false;
      poster.hidden = false;
      controls.hidden = true;
      words.textContent = reason ?? plain;
    },
  };

  open.hidden = false;
  open.addEventListener("click", self.begin);
  frame.addEventListener("contextmenu", (event) => event.preventDefault());
  split.addEventListener("input", redraw);
  role("turn-start").addEventListener("click", start);
  role("turn-full").addEventListener("click", () => (document.fullscreenElement ? document.exitFullscreen() : frame.requestFullscreen?.()));
  return {
    /** Follow what is chosen elsewhere in the edit. */
    update(isOtherMethod) {
      if (turning !== self) {
        camera = null;
        words.textContent = plain;
      } else if (isOtherMethod) load().catch((error) => self.leave(`The scene cannot be shown here: ${error.message}.`));
      else if (place !== currentView()) start();
    },
  };
}
