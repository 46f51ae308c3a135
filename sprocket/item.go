package sprocket

// DataType is what a stream carries. It is the prefix of an endpoint's
// identifier: "frames" and "frames_1" both carry frames (thesis 2.2.7).
type DataType string

// The data types.
const (
	// Chunks are stretches of compressed video.
	Chunks DataType = "chunks"
	// Frames are decoded pictures, in batches.
	Frames DataType = "frames"
	// Images are still picture files.
	Images DataType = "images"
)

// Item is one event of a stream: what a task emitted, or what an input gives.
// Times are ticks of the plan's time base, with 0 at the start of the output.
// Items are values: whoever receives one may keep it and must not change what
// its slices point to.
type Item struct {
	Type DataType `json:"type"`
	// Seq is the item's place in its stream, from 0 without gaps.
	Seq int64 `json:"seq"`
	// Chunk is the cell of the chunk grid that the item was made from: the
	// lowest one when it was made from several.
	Chunk int64 `json:"chunk"`
	// Start and End are the time that the item covers, half-open.
	Start int64 `json:"start"`
	End   int64 `json:"end"`
	// More says that the input whose frames these are does not end before End:
	// its last frame here stays on show up to there.
	More bool `json:"more,omitempty"`
	// Source is set on the chunks of an input endpoint: which part of the
	// input to read.
	Source *SourceRange `json:"source,omitempty"`
	// Objects are the stored files of a chunk (one) or of images (one each).
	Objects []Object `json:"objects,omitempty"`
	// Frames are the pictures, in order of presentation; Pixels is what they
	// look like.
	Frames []FrameRange `json:"frames,omitempty"`
	Pixels *Pixels      `json:"pixels,omitempty"`
	// Cuts are the times at which a scene starts; the delivery function "scene"
	// cuts there.
	Cuts []int64 `json:"cuts,omitempty"`
	// Init is the initialisation segment (ftyp and moov) that belongs to an
	// encoded chunk.
	Init []byte `json:"init,omitempty"`
}

// FrameCount returns how many frames a Frames item holds.
func (it Item) FrameCount() int {
	n := 0
	for _, r := range it.Frames {
		n += len(r.PTS)
	}
	return n
}

// SourceRange is the part of an input that makes one chunk. PTS are ticks of
// the input's own time base, as its container has them.
type SourceRange struct {
	// Input is the index of the input.
	Input int `json:"input"`
	// SeekPTS is the key frame at which decoding starts.
	SeekPTS int64 `json:"seek_pts"`
	// StartPTS and EndPTS bound the frames that belong to the chunk,
	// half-open. Last marks a range without an upper bound.
	StartPTS int64 `json:"start_pts"`
	EndPTS   int64 `json:"end_pts"`
	Last     bool  `json:"last,omitempty"`
	// LeadPTS, at most StartPTS, is where decoded frames are taken from. It lies
	// before StartPTS for inputs that follow another input's clock, so that a
	// frame is on show when the chunk starts.
	LeadPTS int64 `json:"lead_pts"`
	// Frames is how many frames the container's index counts in the range; -1
	// when the index does not say.
	Frames int `json:"frames"`
}

// Object is a file in the job's store.
type Object struct {
	Key       string `json:"key"`
	SizeBytes int64  `json:"size_bytes"`
	// PTS is when the picture is shown, for images.
	PTS int64 `json:"pts,omitempty"`
	// Output says that the object is in the output's store, not in the one
	// between the stages.
	Output bool `json:"output,omitempty"`
	// Count is the number of video frames in an encoded chunk.
	Count int `json:"count,omitempty"`
}

// FrameRange is a run of consecutive frames of one stored object.
type FrameRange struct {
	// Key names the object; it may hold more frames than the range takes.
	Key string `json:"key"`
	// Base is the presentation time of the object's first frame.
	Base int64 `json:"base"`
	// PTS are the presentation times of the frames, rising.
	PTS []int64 `json:"pts"`
}

// Pixels describes decoded pictures: what a consumer must know that raw frames
// do not carry themselves.
type Pixels struct {
	Width  int `json:"width"`
	Height int `json:"height"`
	// Format is FFmpeg's name of the pixel format, "yuv420p".
	Format string `json:"format"`
	// SampleAspect is the shape of a pixel; zero when unknown.
	SampleAspect Rational `json:"sample_aspect"`
	// Range, Space, Transfer and Primaries are FFmpeg's names, empty when
	// unknown.
	Range     string `json:"range,omitempty"`
	Space     string `json:"space,omitempty"`
	Transfer  string `json:"transfer,omitempty"`
	Primaries string `json:"primaries,omitempty"`
}
