package kernel

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestResults: what a program prints (go test -v=test2json) becomes a verdict for each test, and only "pass" is a good one.
func TestResults(t *testing.T) {
	const mark = "\x16" // before each line of the framework
	printed := strings.ReplaceAll(`#=== RUN   TestGood
    good_test.go:1: all is well
#--- PASS: TestGood (0.00s)
#=== RUN   TestBad
#=== RUN   TestBad/part
    #--- FAIL: TestBad/part (0.00s)
#=== RUN   TestBad/other
    #--- PASS: TestBad/other (0.00s)
#--- FAIL: TestBad (0.00s)
#=== RUN   TestSkipped
#--- SKIP: TestSkipped (0.00s)
#=== RUN   TestHangs
`, "#", mark)
	results, err := read(t.Context(), []byte(printed))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"": "", "/TestGood": "", "/TestBad": "failed", "/TestBad/part": "failed", "/TestBad/other": "",
		"/TestSkipped": "skipped, where nothing may be", "/TestHangs": "did not end",
	}
	have := map[string]string{}
	var walk func(string, *result)
	walk = func(path string, r *result) {
		have[path] = r.fault()
		for _, child := range r.children {
			walk(path+"/"+child.name, child)
		}
	}
	walk("", results)
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("verdicts (-want +have):\n%s", diff)
	}
	if output := results.children[0].output.String(); !strings.Contains(output, "all is well") {
		t.Errorf("the log of TestGood is %q", output)
	}
	if results.find([]string{"TestBad", "other"}) == nil || results.find([]string{"TestBad", "none"}) != nil {
		t.Error("a subtest that ran is not found, or one that did not")
	}
	nothing, err := read(t.Context(), []byte("testing: warning: no tests to run\nPASS\n"))
	if err != nil || nothing.fault() != "no test ran" {
		t.Errorf("without a test: %q, %v", nothing.fault(), err)
	}
}

// TestPattern: of other names none is matched.
func TestPattern(t *testing.T) {
	if have, want := pattern([]string{"TestA", "TestB/v1.8"}), `^TestA$|^TestB$/^v1\.8$`; have != want {
		t.Errorf("the pattern is %q, want %q", have, want)
	}
}
