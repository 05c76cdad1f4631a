"use strict";
(() => {
  const D = JSON.parse(document.getElementById("data").textContent), T = D.trades;
  const $ = id => document.getElementById(id), root = document.documentElement, stack = $("stack"), tip = $("tip");
  const n = D.bars, every = D.every, groups = D.price.close.length, count = T.entry.length;
  const own = { low: D.equity.low || D.equity.last, high: D.equity.high || D.equity.last, last: D.equity.last };
  const hold = { low: D.hold.low || D.hold.last, high: D.hold.high || D.hold.last, last: D.hold.last };
  const same = values => ({ low: values, high: values, last: values });
  const close = { low: D.price.low, high: D.price.high, last: D.price.close };

  // --- times: runs of equal steps ---------------------------------------------------------------
  const firsts = [0], stamps = [D.times.start], steps = [];
  for (let i = 0; i < D.times.runs.length; i += 2) {
    steps.push(D.times.runs[i + 1]);
    firsts.push(firsts[i / 2] + D.times.runs[i]);
    stamps.push(stamps[i / 2] + D.times.runs[i] * D.times.runs[i + 1]);
  }
  if (!steps.length) steps.push(3600000);
  const run = (sorted, value) => {
    let a = 0, b = Math.min(sorted.length, steps.length) - 1;
    while (a < b) { const mid = (a + b + 1) >> 1; if (sorted[mid] <= value) a = mid; else b = mid - 1; }
    return a;
  };
  const timeOf = bar => { const r = run(firsts, bar); return stamps[r] + (bar - firsts[r]) * steps[r]; };
  const barOf = ms => { const r = run(stamps, ms); return firsts[r] + (ms - stamps[r]) / steps[r]; };
  const intraday = Math.min(...steps) < 86400000;
  const when = bar => new Date(timeOf(bar)).toISOString().slice(0, intraday ? 16 : 10).replace("T", " ");

  // --- numbers ----------------------------------------------------------------------------------
  const number = (value, places) => value === null ? "–" : value.toLocaleString("en-US", { minimumFractionDigits: places, maximumFractionDigits: places });
  const plain = value => value === null ? "–" : value.toLocaleString("en-US", { maximumSignificantDigits: 8 });
  const signed = (value, places) => value === null ? "–" : (value > 0 ? "+" : "") + number(value, places);
  const paid = t => T.fees[t] + T.slippage[t] + T.carry[t];

  // --- what is in view, in bars -----------------------------------------------------------------
  let from = 0, to = n, log = false, hover = null, picked = null, ink = {};
  const left = 2, right = 62, least = Math.min(n, Math.max(12, 4 * every));
  const show = (a, b) => {
    const span = Math.min(n, Math.max(least, b - a));
    from = Math.min(Math.max(0, (a + b - span) / 2), n - span);
    to = from + span;
    draw();
  };
  const x = (bar, w) => left + (bar + 0.5 - from) / (to - from) * (w - left - right);
  const barAt = (px, w) => from + (px - left) / (w - left - right) * (to - from) - 0.5;
  const view = () => [Math.max(0, Math.floor(from / every)), Math.min(groups - 1, Math.floor((to - 1e-9) / every))];
  const centre = g => Math.min(g * every + (every - 1) / 2, n - 1);

  function begin(id) {
    const canvas = $(id), w = canvas.clientWidth, h = +canvas.getAttribute("data-h"), dots = Math.max(window.devicePixelRatio || 1, root.classList.contains("paper") ? 2 : 1);
    canvas.width = Math.round(w * dots); canvas.height = Math.round(h * dots); canvas.style.height = h + "px";
    const c = canvas.getContext("2d");
    c.scale(dots, dots);
    c.font = "11px system-ui, sans-serif";
    return [c, w, h];
  }

  function scale(low, high, top, bottom, logged) {
    const f = logged && low > 0 ? Math.log : v => v, a = f(low), b = f(high), pad = (b - a || Math.abs(b) || 1) * 0.04;
    return v => bottom - (f(v) - a + pad) / (b - a + 2 * pad) * (bottom - top);
  }

  function ticks(low, high, most, logged) {
    if (logged && high / low > 8) {
      const found = [];
      for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) for (const m of [1, 2, 5]) if (m * 10 ** e >= low && m * 10 ** e <= high) found.push(m * 10 ** e);
      return found;
    }
    const raw = (high - low || Math.abs(high) || 1) / most, unit = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 2.5, 5, 10].find(m => m * unit >= raw * 0.999) * unit;
    const found = [];
    for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(+(i * step).toPrecision(12));
    return found;
  }

  function moments(w) {
    const most = Math.max(2, (w - left - right) / 95), a = timeOf(from), b = timeOf(to), raw = (b - a) / most, found = [];
    const fixed = [1, 5, 15, 30, 60, 180, 360, 720, 1440, 2880, 10080].map(m => m * 60000).find(m => m >= raw);
    if (fixed) {
      for (let t = Math.ceil(a / fixed) * fixed; t < b; t += fixed) {
        const iso = new Date(t).toISOString();
        found.push([t, t % 86400000 ? iso.slice(11, 16) : iso.slice(0, 4) !== new Date(t - fixed).toISOString().slice(0, 4) ? iso.slice(0, 10) : iso.slice(5, 10)]);
      }
      return found;
    }
    const months = [1, 2, 3, 6, 12, 24, 60, 120].find(m => m * 2.63e9 >= raw) || 240, first = new Date(a);
    for (let at = Math.floor((first.getUTCFullYear() * 12 + first.getUTCMonth()) / months) * months; ; at += months) {
      const t = Date.UTC(Math.floor(at / 12), at % 12), iso = new Date(t).toISOString();
      if (t >= b) return found;
      if (t >= a) found.push([t, at % 12 ? iso.slice(0, 7) : iso.slice(0, 4)]);
    }
  }

  function axes(c, w, h, y, low, high, logged, say, foot) {
    c.lineWidth = 1; c.strokeStyle = ink.line; c.fillStyle = ink.dim; c.textBaseline = "middle"; c.textAlign = "left";
    for (const value of ticks(low, high, Math.max(3, h / 46), logged)) {
      const at = Math.round(y(value)) + 0.5;
      if (at < 4 || at > h - foot) continue;
      c.beginPath(); c.moveTo(left, at); c.lineTo(w - right, at); c.stroke();
      c.fillText(say(value), w - right + 6, at);
    }
    c.textAlign = "center";
    for (const [t, name] of moments(w)) {
      const at = Math.round(x(barOf(t), w)) + 0.5;
      c.beginPath(); c.moveTo(at, 0); c.lineTo(at, h - foot); c.stroke();
      if (foot > 4 && at > 24 && at < w - right) c.fillText(name, at, h - 8);
    }
    if (D.mode !== "live") {
      c.save(); c.globalAlpha = 0.07; c.fillStyle = ink.ink; c.font = "700 " + Math.min(46, w / 16) + "px system-ui, sans-serif";
      c.fillText(D.mode + " data", (w - right) / 2, h / 2); c.restore();
    }
  }

  // one stroke from the lowest to the highest of each pixel column: no extreme is lost between two pixels
  function curve(c, w, y, of, colour, thick, fill) {
    const [a, b] = view(), points = [];
    let px = null, lo, hi, end;
    for (let g = Math.max(0, a - 1); g <= Math.min(groups - 1, b + 1); g++) {
      const wide = (to - from) / every < w, at = wide ? x(centre(g), w) : Math.round(x(centre(g), w));
      if (at !== px) { if (px !== null) points.push([px, lo, hi, end]); px = at; lo = of.low[g]; hi = of.high[g]; }
      else { lo = Math.min(lo, of.low[g]); hi = Math.max(hi, of.high[g]); }
      end = of.last[g];
    }
    points.push([px, lo, hi, end]);
    c.save(); c.beginPath(); c.rect(left, 0, w - left - right, 4000); c.clip();
    if (fill !== undefined) {
      c.beginPath(); c.moveTo(points[0][0], y(fill));
      for (const [at, low] of points) c.lineTo(at, y(low));
      c.lineTo(px, y(fill)); c.globalAlpha = 0.16; c.fillStyle = colour; c.fill(); c.globalAlpha = 1;
    }
    c.beginPath();
    for (const [at, low, high, last] of points) { if (low !== high) { c.lineTo(at, y(low)); c.lineTo(at, y(high)); } c.lineTo(at, y(last)); }
    c.lineJoin = "round"; c.strokeStyle = colour; c.lineWidth = thick; c.stroke(); c.restore();
  }

  const extent = (...lists) => {
    const [a, b] = view();
    let low = Infinity, high = -Infinity;
    for (const list of lists) for (let g = a; g <= b; g++) { if (list[g] < low) low = list[g]; if (list[g] > high) high = list[g]; }
    return [low, high];
  };

  function drawEquity() {
    const [c, w, h] = begin("equity"), [low, high] = extent(own.low, own.high, hold.low, hold.high), logged = log && low > 0;
    const y = scale(low, high, 4, h - 4, logged);
    axes(c, w, h, y, low, high, logged, v => plain(v), 4);
    c.setLineDash([3, 3]); c.strokeStyle = ink.dim; c.beginPath(); c.moveTo(left, y(100)); c.lineTo(w - right, y(100)); if (low <= 100 && high >= 100) c.stroke(); c.setLineDash([]);
    curve(c, w, y, hold, ink.hold, 1.4); curve(c, w, y, own, ink.own, 1.8);
    cross(c, w, h);
  }

  function drawFall() {
    const [c, w, h] = begin("fall"), [low] = extent(D.fall, D.hold_fall), y = scale(Math.min(low, -0.01), 0, 2, h - 20, false);
    axes(c, w, h, y, Math.min(low, -0.01), 0, false, v => plain(v), 18);
    curve(c, w, y, same(D.hold_fall), ink.hold, 1.1); curve(c, w, y, same(D.fall), ink.own, 1.3, 0);
    cross(c, w, h - 18);
  }

  const seen = () => {
    let a = 0, b = count;
    while (a < b) { const mid = (a + b) >> 1; if (T.exit[mid] < from) a = mid + 1; else b = mid; }
    const found = [];
    for (let t = a; t < count && T.entry[t] <= to; t++) found.push(t);
    return found;
  };

  function drawPrice() {
    const [c, w, h] = begin("price"), [low, high] = extent(D.price.low, D.price.high), logged = log && low > 0;
    const y = scale(low, high, 10, h - 34, logged), [a, b] = view(), wide = (w - left - right) * every / (to - from), trades = seen();
    axes(c, w, h, y, low, high, logged, v => plain(v), 18);
    if (wide >= 3.5) {
      c.save(); c.beginPath(); c.rect(left, 0, w - left - right, h); c.clip();
      for (let g = a; g <= b; g++) {
        const at = x(centre(g), w), up = D.price.close[g] >= D.price.open[g], body = Math.max(1, Math.min(wide * 0.68, 13));
        const top = y(Math.max(D.price.open[g], D.price.close[g])), end = y(Math.min(D.price.open[g], D.price.close[g]));
        c.strokeStyle = c.fillStyle = ink.hold; c.lineWidth = 1;
        c.beginPath(); c.moveTo(at, y(D.price.high[g])); c.lineTo(at, top); c.moveTo(at, end); c.lineTo(at, y(D.price.low[g])); c.stroke();
        if (up) c.strokeRect(at - body / 2, top, body, Math.max(1, end - top)); else c.fillRect(at - body / 2, top, body, Math.max(1, end - top));
      }
      c.restore();
    } else curve(c, w, y, close, ink.hold, 1);
    c.save(); c.beginPath(); c.rect(left, 0, w - left - right, h - 22); c.clip();
    const crowded = trades.length > (w - right) / 18, size = crowded ? 3 : 5;
    for (const t of trades) {
      const open = T.exit[t] >= n, x0 = x(T.entry[t], w), x1 = x(Math.min(T.exit[t], n - 1), w), y0 = y(T.entered[t]);
      const y1 = y(open ? D.price.close[groups - 1] : T.left[t]), colour = T.pnl[t] > 0 ? ink.win : ink.loss, side = T.side[t];
      c.fillStyle = side > 0 ? ink.own : ink.warn; c.globalAlpha = 0.8; c.fillRect(x0, h - 27, Math.max(1, x1 - x0), 5); c.globalAlpha = 1;
      c.strokeStyle = colour; c.lineWidth = t === picked ? 3 : crowded ? 1.2 : 1.7;
      c.beginPath(); c.moveTo(x0, y0); c.lineTo(x1, y1); c.stroke();
      if (crowded && trades.length > (w - right) / 2) continue;
      triangle(c, x0, y0 + side * (size + 2), size, side, side > 0 ? ink.own : ink.warn, true);
      if (!open) triangle(c, x1, y1 - side * (size + 2), size, -side, colour, false);
    }
    c.restore();
    cross(c, w, h - 18);
  }

  function triangle(c, at, y, size, up, colour, full) {
    c.beginPath(); c.moveTo(at, y - up * size); c.lineTo(at - size, y + up * size * 0.8); c.lineTo(at + size, y + up * size * 0.8); c.closePath();
    c.lineWidth = 1.3; c.strokeStyle = c.fillStyle = colour;
    if (full) c.fill(); else { c.fillStyle = ink.bg; c.fill(); c.stroke(); }
  }

  function cross(c, w, h) {
    if (drag) { c.fillStyle = ink.own; c.globalAlpha = 0.12; c.fillRect(Math.min(drag.x0, drag.x1), 0, Math.abs(drag.x1 - drag.x0), h); c.globalAlpha = 1; }
    if (hover === null) return;
    const at = Math.round(x(hover, w)) + 0.5;
    c.strokeStyle = ink.dim; c.lineWidth = 1; c.setLineDash([2, 3]); c.beginPath(); c.moveTo(at, 0); c.lineTo(at, h); c.stroke(); c.setLineDash([]);
  }

  let pending = false;
  function draw() {
    if (pending) return;
    pending = true;
    requestAnimationFrame(paint);
  }
  function paint() {
    pending = false;
    const style = getComputedStyle(root), rgb = name => "rgb(" + style.getPropertyValue("--" + name) + ")";
    for (const name of ["bg", "ink", "dim", "line", "own", "hold"]) ink[name] = style.getPropertyValue("--" + name).trim();
    for (const name of ["win", "loss", "warn"]) ink[name] = rgb(name);
    drawEquity(); drawFall(); drawPrice();
  }

  // --- pointer and keys -------------------------------------------------------------------------
  let drag = null;
  const wide = () => stack.clientWidth, place = e => e.clientX - stack.getBoundingClientRect().left;
  const clear = () => { hover = null; tip.style.display = "none"; };
  function tell(e) {
    const bar = Math.min(n - 1, Math.max(0, Math.round(barAt(place(e), wide())))), g = Math.floor(bar / every), P = D.price;
    hover = bar;
    const lines = [when(bar) + (every > 1 ? " (" + every + " bars)" : ""), "open " + plain(P.open[g]) + "  high " + plain(P.high[g]) + "\nlow " + plain(P.low[g]) + "  close " + plain(P.close[g]),
      "equity " + number(own.last[g], 2) + "%  hold " + number(hold.last[g], 2) + "%  drawdown " + number(D.fall[g], 2) + "%"];
    const t = nearest(bar);
    if (t !== null) {
      const open = T.exit[t] >= n;
      lines.push("", "trade " + T.number[t] + ", " + (T.side[t] > 0 ? "long " : "short ") + plain(T.size[t]), "in   " + when(T.entry[t]) + " at " + plain(T.entered[t]) + " (" + T.reasons[T.why_in[t]] + ")",
        open ? "still open" : "out  " + when(T.exit[t]) + " at " + plain(T.left[t]) + " (" + T.reasons[T.why_out[t]] + ")", "profit " + signed(T.pnl[t], 2) + " (" + signed(T.gain[t], 2) + "%), costs " + number(paid(t), 2));
    }
    tip.textContent = lines.join("\n"); tip.style.display = "block";
    const at = place(e), box = stack.getBoundingClientRect();
    tip.style.left = Math.max(0, at > wide() / 2 ? at - tip.offsetWidth - 16 : at + 16) + "px";
    tip.style.top = Math.max(0, Math.min(e.clientY - box.top + 12, box.height - tip.offsetHeight)) + "px";
  }
  function nearest(bar) {
    const reach = (to - from) / wide() * 6;
    let best = null, apart = reach;
    for (const t of seen()) {
      const away = bar < T.entry[t] ? T.entry[t] - bar : bar > T.exit[t] ? bar - T.exit[t] : 0;
      if (away <= apart && (away < apart || best === null)) { best = t; apart = away; }
    }
    return best;
  }
  const move = by => show(from + by, to + by), zoom = (by, at = (from + to) / 2) => { const a = at - (at - from) * by; show(a, a + (to - from) * by); };
  stack.addEventListener("pointerdown", e => {
    if (e.button) return;
    stack.setPointerCapture(e.pointerId);
    drag = { x0: place(e), x1: place(e), move: e.shiftKey || e.pointerType === "touch", from };
  });
  stack.addEventListener("pointermove", e => {
    if (drag) {
      drag.x1 = place(e);
      if (drag.move) { const by = drag.from - (drag.x1 - drag.x0) / (wide() - left - right) * (to - from) - from; drag.moved = true; return move(by); }
    }
    tell(e); draw();
  });
  stack.addEventListener("pointerup", () => {
    const was = drag;
    drag = null;
    if (was && !was.move && Math.abs(was.x1 - was.x0) > 6) { const [a, b] = [was.x0, was.x1].sort((p, q) => p - q).map(p => barAt(p, wide()) + 0.5); return show(a, b); }
    draw();
  });
  stack.addEventListener("pointercancel", () => { drag = null; draw(); });
  stack.addEventListener("pointerleave", () => { clear(); draw(); });
  stack.addEventListener("dblclick", () => show(0, n));
  stack.addEventListener("wheel", e => { if (e.ctrlKey || e.metaKey) { e.preventDefault(); zoom(e.deltaY > 0 ? 1.25 : 0.8, barAt(place(e), wide())); } }, { passive: false });
  const deeds = { in: () => zoom(0.5), out: () => zoom(2), left: () => move((from - to) * 0.6), right: () => move((to - from) * 0.6), all: () => show(0, n) };
  const keys = { "+": "in", "-": "out", ArrowLeft: "left", ArrowRight: "right", "0": "all", Escape: "all" };
  stack.addEventListener("keydown", e => { if (keys[e.key] && !e.ctrlKey && !e.metaKey) { e.preventDefault(); deeds[keys[e.key]](); } });
  for (const button of document.querySelectorAll("[data-do]")) button.onclick = deeds[button.dataset.do];
  $("log").onchange = e => { log = e.target.checked; draw(); };

  // --- the list of trades: sorted over all of them, shown in part --------------------------------
  const columns = [
    ["#", t => T.number[t], t => T.number[t]], ["side", t => T.side[t], t => T.side[t] > 0 ? "long" : "short"],
    ["in (UTC)", t => T.entry[t], t => when(T.entry[t])], ["out", t => T.exit[t], t => T.exit[t] < n ? when(T.exit[t]) : "open"],
    ["bars", t => T.exit[t] - T.entry[t], t => plain(T.exit[t] - T.entry[t])], ["price in", t => T.entered[t], t => plain(T.entered[t])],
    ["price out", t => T.left[t], t => T.exit[t] < n ? plain(T.left[t]) : "–"], ["size", t => T.size[t], t => plain(T.size[t])],
    ["profit", t => T.pnl[t], t => signed(T.pnl[t], 2)], ["%", t => T.gain[t], t => signed(T.gain[t], 2)], ["costs", paid, t => number(paid(t), 2)],
    ["why in", t => T.reasons[T.why_in[t]], t => T.reasons[T.why_in[t]]], ["why out", t => T.reasons[T.why_out[t]], t => T.reasons[T.why_out[t]]]];
  const numeric = new Set([0, 4, 5, 6, 7, 8, 9, 10]), order = Array.from({ length: count }, (_, t) => t), head = $("trades").tHead.rows[0];
  let by = 0, falling = false, rows = 200;
  function list() {
    const key = columns[by][1], turn = falling ? -1 : 1;
    order.sort((p, q) => { const a = key(p), b = key(q); return (a < b ? -turn : a > b ? turn : 0) || p - q; });
    const body = document.createElement("tbody");
    for (const t of order.slice(0, rows)) {
      const row = body.insertRow();
      columns.forEach(([, , say], i) => { const cell = row.insertCell(); cell.textContent = say(t); if (numeric.has(i)) cell.className = "n"; if (i === 8 || i === 9) cell.classList.add(T.pnl[t] > 0 ? "win" : "loss"); });
      row.onclick = () => { picked = t; const half = Math.max(30, T.exit[t] - T.entry[t]); show(T.entry[t] - half, Math.min(T.exit[t], n) + half); $("price").scrollIntoView({ behavior: "smooth", block: "center" }); };
    }
    $("trades").tBodies[0].replaceWith(body);
    [...head.cells].forEach((cell, i) => i === by ? cell.setAttribute("aria-sort", falling ? "descending" : "ascending") : cell.removeAttribute("aria-sort"));
    const kept = T.all > count ? " Of " + plain(T.all) + " trades the " + plain(count) + " that moved the most money are kept in this page." : "";
    $("shown").textContent = count ? "Showing " + plain(Math.min(rows, count)) + " of " + plain(T.all) + " trades." + kept + " A click on a column sorts all of them, one on a trade shows it in the chart. Profit is after all costs." : "There were no trades.";
    $("more").style.display = rows < count ? "" : "none";
  }
  columns.forEach(([name], i) => {
    const cell = head.appendChild(document.createElement("th"));
    cell.textContent = name; if (numeric.has(i)) cell.className = "n";
    cell.onclick = () => { falling = by === i ? !falling : i >= 8 && i <= 10; by = i; list(); };
  });
  $("more").onclick = () => { rows += 500; list(); };

  for (const id of ["equity", "fall", "price"]) $(id).setAttribute("data-h", $(id).getAttribute("height"));
  list(); paint();
  addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("beforeprint", () => { root.classList.add("paper"); clear(); paint(); });
  addEventListener("afterprint", () => { root.classList.remove("paper"); paint(); });
})();
