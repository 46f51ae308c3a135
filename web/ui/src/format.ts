// How numbers are shown.

/** 75 → "1:15", 3675 → "1:01:15"; with tenths for short videos. */
export function clock(seconds: number, tenths = false): string {
  if (!Number.isFinite(seconds) || seconds < 0) return "–:––";
  const unit = tenths ? 10 : 1;
  // The last sample of a video of 8 s may end at 7.9999.
  const whole = Math.floor((seconds + 0.001) * unit);
  const s = Math.floor(whole / unit);
  const two = (n: number) => String(n).padStart(2, "0");
  const h = Math.floor(s / 3600);
  const m = Math.floor(s / 60) % 60;
  const head = h > 0 ? `${h}:${two(m)}` : String(m);
  return `${head}:${two(s % 60)}` + (tenths ? `.${whole % unit}` : "");
}

export function bytes(n: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  while (n >= 1000 && i < units.length - 1) {
    n /= 1000;
    i++;
  }
  return `${i === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)} ${units[i]}`;
}

export function baseName(path: string): string {
  return path.replace(/[?#].*$/, "").replace(/\/+$/, "").split("/").pop() || path;
}
