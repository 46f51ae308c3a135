package media

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volley-run/volley/internal/testenv"
)

// testVideo returns the path of a clip of the test data.
func testVideo(t testing.TB, name string) string {
	t.Helper()
	testenv.Need(t, testenv.FFmpeg)
	return testenv.Data(t, "video", name)
}

// makeClip runs ffmpeg with the given arguments, blank-separated, and returns
// the path of the file name that it writes. The arguments may use $NAME for the
// clip name of the test data.
func makeClip(t testing.TB, name, args string) string {
	t.Helper()
	testenv.Need(t, testenv.FFmpeg)
	path := filepath.Join(t.TempDir(), name)
	var words []string
	for _, word := range strings.Fields(args) {
		if clip, found := strings.CutPrefix(word, "$"); found {
			word = testVideo(t, clip)
		}
		words = append(words, word)
	}
	words = append(append([]string{"-v", "error", "-nostdin", "-y"}, words...), "file:"+path)
	runTool(t, "ffmpeg", words...)
	return path
}

func runTool(t testing.TB, tool string, args ...string) []byte {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command(tool, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", tool, strings.Join(args, " "), err, stderr.String())
	}
	return out
}
