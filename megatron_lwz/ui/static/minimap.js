// A strip at the edge of the window: the whole text with its band, and which part of it is on the screen.

const COLOURS = {
  light: { page: "#f1f1ee", rule: "#9aa0a8", view: "rgba(35,102,201,.16)", edge: "#2366c9", levels: ["#c9dcf3", "#8fb6e6", "#4c86d0", "#17498f", "#e8b67a"], think: "#e2e2dd" },
  dark: { page: "#1b1e23", rule: "#666c75", view: "rgba(110,164,245,.2)", edge: "#6ea4f5", levels: ["#24384f", "#31587f", "#4c86c4", "#9cc4f7", "#8a6230"], think: "#23272d" },
};

export class Minimap {
  /** `seen` gives the first and last place on the screen, `go` shows a place. */
  constructor(canvas, { length, sections, seen, go }) {
    Object.assign(this, { canvas, length, sections, seen, go, spans: [], base: document.createElement("canvas") });
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    let asked = false;
    const later = () => {
      if (!asked) requestAnimationFrame(() => { asked = false; this.window(); });
      asked = true;
    };
    addEventListener("scroll", later, { passive: true });
    addEventListener("resize", () => this.draw(this.spans));
    this.dark.addEventListener("change", () => this.draw(this.spans));
    document.addEventListener("toggle", later, true);
    const at = (event) => this.go((this.length * event.offsetY) / canvas.clientHeight);
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); at(event); });
    canvas.addEventListener("pointermove", (event) => event.buttons && at(event));
    this.draw([]);
  }

  /** Draws the strip for spans [start, end, level]. */
  draw(spans) {
    this.spans = spans;
    const scale = devicePixelRatio || 1;
    const colours = this.dark.matches ? COLOURS.dark : COLOURS.light;
    const width = (this.base.width = this.canvas.width = Math.max(1, Math.round(this.canvas.clientWidth * scale)));
    const height = (this.base.height = this.canvas.height = Math.max(1, Math.round(this.canvas.clientHeight * scale)));
    const pen = this.base.getContext("2d");
    const y = (place) => Math.round((place / Math.max(1, this.length)) * height);
    pen.fillStyle = colours.page;
    pen.fillRect(0, 0, width, height);
    this.sections.forEach(([start, kind], place) => {
      const end = this.sections[place + 1]?.[0] ?? this.length;
      if (kind === "think") { pen.fillStyle = colours.think; pen.fillRect(0, y(start), width, y(end) - y(start)); }
      if (place) { pen.fillStyle = colours.rule; pen.fillRect(0, y(start), width, scale); }
    });
    const levels = colours.levels.length, size = levels + 1;
    const rows = new Float32Array(height * size); // per row of pixels: how much of each level it holds
    for (const [start, end, level] of spans) {
      const last = Math.min(height - 1, Math.max(y(start), y(end) - 1));
      for (let row = y(start); row <= last; row++) rows[row * size + level] += last > y(start) ? this.length / height : end - start;
    }
    for (let row = 0; row < height; row++) {
      let from = 0.15 * width;
      for (let level = levels; level; level--) {
        const part = Math.min(1, rows[row * size + level] / (this.length / height));
        if (!part) continue;
        const wide = Math.max(0.12, part) * 0.7 * width;
        pen.fillStyle = colours.levels[level - 1];
        pen.fillRect(from, row, Math.min(wide, 0.85 * width - from), 1);
        from = Math.min(from + wide, 0.85 * width);
      }
    }
    this.window();
  }

  /** Draws the part that is on the screen over the strip. */
  window() {
    const pen = this.canvas.getContext("2d");
    const colours = this.dark.matches ? COLOURS.dark : COLOURS.light;
    const { width, height } = this.canvas;
    pen.drawImage(this.base, 0, 0);
    const seen = this.seen();
    if (!seen || !this.length) return;
    const top = (seen[0] / this.length) * height, size = Math.max(6, ((seen[1] - seen[0]) / this.length) * height);
    pen.fillStyle = colours.view;
    pen.fillRect(0, top, width, size);
    pen.strokeStyle = colours.edge;
    pen.strokeRect(0.5, top + 0.5, width - 1, size - 1);
  }
}
