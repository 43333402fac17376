package cloudinit

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write what Merge returns to testdata/*.want")

func TestMerge(t *testing.T) {
	for _, name := range extended {
		t.Run(name, func(t *testing.T) {
			in := read(t, name+".in")
			got, skipped := Merge(in, testFile)
			if skipped != ReasonNone {
				t.Fatalf("skipped: %s", skipped)
			}
			if *update {
				if err := os.WriteFile(filepath.Join("testdata", name+".want"), got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(string(read(t, name+".want")), string(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			again, skipped := Merge(got, testFile)
			if skipped != ReasonNone || !bytes.Equal(again, got) {
				t.Errorf("merged twice: %q, %q", skipped, again)
			}
			other := File{Path: testFile.Path, Content: "192.168.100.5\n"}
			if _, skipped := Merge(got, other); skipped != ReasonOwnFile {
				t.Errorf("with another address: %q, want %q", skipped, ReasonOwnFile)
			}
		})
	}
}

func TestMergeLeavesAlone(t *testing.T) {
	for name, want := range leftAlone {
		t.Run(name, func(t *testing.T) {
			in := read(t, name+".in")
			got, skipped := Merge(in, testFile)
			if skipped != want || !bytes.Equal(got, in) {
				t.Errorf("%q, %q, want %q", skipped, got, want)
			}
		})
	}
}

// The result may have KubeVirt's 2048 bytes and no more, in each way of merging.
func TestMergeSize(t *testing.T) {
	multipart := "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n" +
		"--b\nContent-Type: text/x-shellscript\n\n#!/bin/sh\n#%\n--b--\n"
	for name, text := range map[string]string{
		"config":    "#cloud-config\n#%\nhostname: web\n",
		"list":      "#cloud-config\n#%\nwrite_files:\n- path: /etc/mine\n",
		"script":    "#!/bin/sh\n#%\n",
		"multipart": multipart,
	} {
		t.Run(name, func(t *testing.T) {
			bare, _ := Merge([]byte(strings.Replace(text, "%", "", 1)), testFile)
			for _, size := range []int{2047, 2048, 2049} {
				in := strings.Replace(text, "%", strings.Repeat("x", size-len(bare)), 1)
				got, skipped := Merge([]byte(in), testFile)
				if size <= 2048 && (len(got) != size || skipped != ReasonNone) {
					t.Errorf("%d bytes, skipped %q, want %d", len(got), skipped, size)
				}
				if size > 2048 && (string(got) != in || skipped != ReasonTooLong) {
					t.Errorf("%d bytes from %d, skipped %q", len(got), len(in), skipped)
				}
			}
		})
	}
	for _, size := range []int{2047, 2048, 2049} {
		in := "#!/bin/sh\n" + strings.Repeat("#", size-10)
		if got, skipped := Merge([]byte(in), testFile); skipped != ReasonTooLong || string(got) != in {
			t.Errorf("user data of %d bytes: %q", size, skipped)
		}
	}
}

// An IPv6 address of small groups would be a number in base sixty without its quotes.
func TestMergeQuotes(t *testing.T) {
	got, _ := Merge(nil, File{Path: "/etc/floatip/floating-ip", Content: "2001:10:20:30:40:50:1:2\n"})
	want := "#cloud-config\nwrite_files:\n- path: \"/etc/floatip/floating-ip\"\n" +
		"  content: \"2001:10:20:30:40:50:1:2\\n\"\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
