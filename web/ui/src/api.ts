// What the server says about the result directory: GET api/result.

export interface Image {
  file: string;
  time?: number;
}

export interface Output {
  name: string;
  path: string;
  formats: string[];
  complete: boolean;
  images?: Image[];
  thumbnails?: string;
  files: { name: string; size_bytes: number }[];
}

export interface Listing {
  name: string;
  state: "running" | "finished" | "stopped";
  idle_seconds: number;
  outputs: Output[];
  result?: {
    pipeline?: string;
    inputs?: unknown;
    duration_seconds?: number;
    frames?: number;
    elapsed_seconds?: number;
    error?: string;
  };
}

export async function fetchListing(): Promise<Listing> {
  const response = await fetch("api/result", { cache: "no-store" });
  if (!response.ok) throw new Error(`HTTP ${response.status}: ${(await response.text()).trim()}`);
  return (await response.json()) as Listing;
}

/** The address of a file of an output; its name may need escaping. */
export function mediaURL(output: Output, file: string): string {
  return new URL("media/" + (output.path + file).split("/").map(encodeURIComponent).join("/"), document.baseURI).href;
}

/** The names of the inputs, however the run wrote them down. */
export function inputNames(listing: Listing): string[] {
  const inputs = listing.result?.inputs;
  if (!Array.isArray(inputs)) return [];
  return inputs.map((input) => {
    if (typeof input === "string") return input;
    if (typeof input === "object" && input !== null) {
      const fields = input as Record<string, unknown>;
      for (const key of ["path", "url", "file", "name"]) {
        if (typeof fields[key] === "string") return fields[key];
      }
    }
    return String(input);
  });
}
