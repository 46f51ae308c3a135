// The images of an output, and the viewer that shows one of them large.

import { type Image, type Output, mediaURL } from "./api";
import { byId, create } from "./dom";
import { baseName, clock } from "./format";

const PAGE = 120;

export class Gallery {
  private readonly list = byId<HTMLUListElement>("gallery");
  private readonly more = byId<HTMLButtonElement>("more");
  private readonly viewer = byId<HTMLDialogElement>("viewer");
  private output: Output | undefined;
  private images: Image[] = [];
  private shown = PAGE;
  private current = 0;

  /** seek is called with a time to play from, or is undefined without video. */
  constructor(private readonly seek: () => ((seconds: number) => void) | undefined) {
    this.more.addEventListener("click", () => {
      this.shown += PAGE;
      this.fill();
    });
    byId("viewerPrev").addEventListener("click", () => this.open(this.current - 1));
    byId("viewerNext").addEventListener("click", () => this.open(this.current + 1));
    byId("viewerClose").addEventListener("click", () => this.viewer.close());
    byId("viewerSeek").addEventListener("click", () => {
      const time = this.images[this.current]?.time;
      this.viewer.close();
      if (time !== undefined) this.seek()?.(time);
    });
    this.viewer.addEventListener("click", (event) => {
      if (event.target === this.viewer) this.viewer.close();
    });
    this.viewer.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") this.open(this.current - 1);
      else if (event.key === "ArrowRight") this.open(this.current + 1);
    });
  }

  show(output: Output | undefined): void {
    const images = output?.images ?? [];
    byId("gallerySection").hidden = images.length === 0;
    if (output?.path !== this.output?.path) {
      this.list.replaceChildren();
      this.shown = PAGE;
    }
    this.output = output;
    this.images = images;
    byId("galleryCount").textContent = images.length ? String(images.length) : "";
    this.fill();
  }

  private fill(): void {
    const count = Math.min(this.shown, this.images.length);
    while (this.list.children.length > count) this.list.lastElementChild?.remove();
    for (let i = this.list.children.length; i < count; i++) this.list.append(this.item(i));
    this.more.hidden = count >= this.images.length;
  }

  private item(index: number): HTMLLIElement {
    const image = this.images[index]!;
    const picture = create("img", { loading: "lazy", decoding: "async", alt: "", src: mediaURL(this.output!, image.file) });
    const label = image.time === undefined ? baseName(image.file) : clock(image.time, true);
    const button = create("button", { type: "button", title: baseName(image.file) }, picture, create("span", {}, label));
    button.setAttribute("aria-label", `Image ${index + 1}, ${label}`);
    button.addEventListener("click", () => this.open(index));
    return create("li", {}, button);
  }

  private open(index: number): void {
    const image = this.images[index];
    if (!image || !this.output) return;
    this.current = index;
    const url = mediaURL(this.output, image.file);
    byId<HTMLImageElement>("viewerImage").src = url;
    byId("viewerCaption").textContent =
      `${index + 1} of ${this.images.length}` + (image.time === undefined ? "" : ` · ${clock(image.time, true)}`);
    const link = byId<HTMLAnchorElement>("viewerLink");
    link.href = url;
    link.download = baseName(image.file);
    byId("viewerSeek").hidden = image.time === undefined || !this.seek();
    byId<HTMLButtonElement>("viewerPrev").disabled = index === 0;
    byId<HTMLButtonElement>("viewerNext").disabled = index === this.images.length - 1;
    if (!this.viewer.open) this.viewer.showModal();
  }
}
