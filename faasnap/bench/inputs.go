package bench

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"image"
	"image/jpeg"
	"math"
	"math/rand/v2"
	"strings"
)

func random(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

// textData is words.
func textData(size int, seed uint64) (string, error) {
	return words(size, random(seed)), nil
}

func words(size int, r *rand.Rand) string {
	var b strings.Builder
	for b.Len() < size {
		for range 2 + r.IntN(8) {
			b.WriteByte(byte('a' + r.IntN(26)))
		}
		b.WriteByte(' ')
	}
	return b.String()[:size]
}

// jsonData is JSON: a list of records.
func jsonData(size int, seed uint64) (string, error) {
	r := random(seed)
	type record struct {
		ID     int       `json:"id"`
		Name   string    `json:"name"`
		Tags   []string  `json:"tags"`
		Values []float64 `json:"values"`
	}
	records := []json.RawMessage{}
	for n := 0; n < size; {
		text, err := json.Marshal(record{
			ID: r.IntN(1e6), Name: words(12, r), Tags: []string{words(5, r), words(7, r)}, Values: []float64{r.Float64(), r.Float64(), r.NormFloat64()},
		})
		if err != nil {
			return "", err
		}
		records, n = append(records, text), n+len(text)
	}
	text, err := json.Marshal(records)
	return string(text), err
}

// fileData is text as a file.
func fileData(size int, seed uint64) (string, error) {
	return base64.StdEncoding.EncodeToString([]byte(words(size, random(seed)))), nil
}

// noiseData is bytes that cannot be compressed, as the pixels of photographs.
func noiseData(size int, seed uint64) (string, error) {
	r, b := random(seed), make([]byte, size)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return base64.StdEncoding.EncodeToString(b), nil
}

// jpegData is an image of about so many pixels, four wide to three high.
func jpegData(pixels int, seed uint64) (string, error) {
	height := max(8, int(math.Sqrt(float64(pixels)*3/4)))
	var b bytes.Buffer
	err := jpeg.Encode(&b, picture(max(8, pixels/height), height, 0, random(seed)), &jpeg.Options{Quality: 90})
	return base64.StdEncoding.EncodeToString(b.Bytes()), err
}

// videoData is so many frames of 480p video, each a JPEG image.
func videoData(frames int, seed uint64) (string, error) {
	var b bytes.Buffer
	for i := range frames {
		// Each frame is what the first is, a bit further on.
		if err := jpeg.Encode(&b, picture(640, 480, i, random(seed)), &jpeg.Options{Quality: 50}); err != nil {
			return "", fmt.Errorf("frame %d: %w", i, err)
		}
	}
	return base64.StdEncoding.EncodeToString(b.Bytes()), nil
}

// picture is waves with some noise; time shifts the waves.
func picture(width, height, time int, r *rand.Rand) image.Image {
	img := image.NewYCbCr(image.Rect(0, 0, width, height), image.YCbCrSubsampleRatio420)
	fx, fy, shift := 0.01+0.05*r.Float64(), 0.01+0.05*r.Float64(), float64(time)/4
	noise := uint64(0)
	for y := range height {
		for x := range width {
			if x%16 == 0 {
				noise = r.Uint64()
			}
			v := 128 + 90*math.Sin(float64(x)*fx+shift)*math.Cos(float64(y)*fy)
			img.Y[y*img.YStride+x] = uint8(v) + uint8(noise>>(4*(x%16))&7)
		}
	}
	for i := range img.Cb {
		img.Cb[i], img.Cr[i] = uint8(96+i%64), uint8(160-i%64)
	}
	return img
}
