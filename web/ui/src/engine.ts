// One way to play an output. Each format has its own.

export type Mode = "dash" | "hls" | "mp4";

export interface Engine {
  /** How far the run has published, in seconds; NaN while not known. */
  published(): number;
  /** Whether more may be published. */
  growing(): boolean;
  /** Takes everything of the engine off the element. */
  destroy(): void;
}

export interface Listener {
  segment(): void;
  /** Something failed; advice says what a person can do. */
  error(what: string, advice: string): void;
}

export type Attach = (video: HTMLVideoElement, url: string, listener: Listener) => Promise<Engine>;

/** What to do about a file that the server did not give. */
export function loadAdvice(status: number | undefined): string {
  if (status === 404 || status === 410) {
    return "The file is not in the result directory. If the run is still going, reload in a moment; otherwise run it again.";
  }
  if (status === 403) return "The server may not read the file: look at its permissions.";
  if (status !== undefined && status >= 500) return "Look at the log of volley serve.";
  return "Is volley serve still running? Start it again and reload this page.";
}

export async function load(mode: Mode): Promise<Attach> {
  switch (mode) {
    case "dash":
      return (await import("./dash")).attach;
    case "hls":
      return (await import("./hls")).attach;
    case "mp4":
      return (await import("./native")).attach;
  }
}
