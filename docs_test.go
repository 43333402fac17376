package floatip

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocsNameTestsThatExist: a page that says which test shows a thing is believed, so the test must be there. So must
// the tests that the pages of decisions name.
func TestDocsNameTestsThatExist(t *testing.T) {
	declared := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w*)\(`)
	named := regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z]\\w*)(?:/(\\w+)`)?")
	mentions, parts, code := map[string]string{}, map[string]string{}, ""
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() && path != "." && (name == "bin" || strings.HasPrefix(name, ".")) {
			return fs.SkipDir
		}
		test, page := strings.HasSuffix(name, "_test.go"), strings.HasSuffix(name, ".md")
		if entry.IsDir() || !test && !page {
			return nil
		}
		raw, err := os.ReadFile(path)
		for _, m := range function.FindAllStringSubmatch(string(raw), -1) {
			declared[m[1]] = declared[m[1]] || test
		}
		if test {
			code += string(raw)
		}
		for _, m := range named.FindAllStringSubmatch(string(raw), -1) {
			if page {
				mentions[m[1]] = path
			}
			if page && m[2] != "" {
				parts[m[2]] = path
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, page := range mentions {
		if !declared[name] {
			t.Errorf("%s names %s, which no file declares", page, name)
		}
	}
	for name, page := range parts {
		// Package testing writes the spaces of a name as underscores, and so do the pages.
		if !strings.Contains(code, `"`+name+`"`) && !strings.Contains(code, `"`+strings.ReplaceAll(name, "_", " ")+`"`) {
			t.Errorf("%s names a part %s of a test, which no test has", page, name)
		}
	}
	if len(parts) < 5 {
		t.Errorf("only %d parts of tests are named in the pages: the search is wrong", len(parts))
	}
	if len(mentions) < 20 {
		t.Errorf("only %d tests are named in the pages: the search is wrong", len(mentions))
	}
}
