package cloudinit

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// Pieces of which people make their user data.
var (
	headers = []string{"#cloud-config\n", "#cloud-config\n", "#cloud-config\n---\n", "## template: jinja\n#cloud-config\n"}
	keys    = []string{
		"hostname: web\n",
		"runcmd:\n- touch /run/mine\n",
		"bootcmd:\n  - [touch, /run/mine]\n  - |\n    # no comment\n    echo mine\n\n",
		"packages: [vim, 'git']\n",
		"users:\n- default\n- name: mine\n  lock_passwd: true\n",
		"final_message: >-\n  up after\n\n  # no comment\n",
		"motd: &text |+\n  für alle\n\n\n",
	}
	lists = []string{
		"write_files:\n- path: /etc/mine\n  content: mine\n",
		"write_files:\n    - path: /etc/mine\n      content: |\n        # mine\n\n        - path: none\n",
		"write_files:\n  - content: |+\n      mine\n\n    path: /etc/mine\n",
		"write_files:\n-\n  path: /etc/mine\n  content: |-\n    write_files:\n    - x\n",
		"\"write_files\": # files\n  # the first\n  - {path: /etc/mine, content: \"mine\"}\n  # the last\n",
		"write_files: [{path: /etc/mine, content: mine}]\n",
		"write_files: &files\n- path: /etc/mine\n  content: für alle\n",
		"? write_files\n: - path: /etc/mine\n    content: mine\n",
	}
	between = []string{"", "", "", "\n", "# a note\n", "   # far in\n", "\n\n# two lines\n# of notes\n\n"}
	endings = []func(string) string{
		func(s string) string { return s },
		func(s string) string { return strings.TrimRight(s, "\n") },
		func(s string) string { return s + "\n\n# the end" },
		func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") },
		func(s string) string {
			return "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=mine\n\n--mine\n" +
				"Content-Type: text/plain\n\n" + strings.ReplaceAll(s, "ü", "u") + "\n--mine--"
		},
	}
)

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// generate puts pieces together.
func generate(r *rand.Rand) string {
	chosen := []string{pick(r, lists)}
	for _, i := range r.Perm(len(keys))[:r.IntN(4)] {
		chosen = append(chosen, keys[i])
	}
	if len(chosen) > 1 && r.IntN(4) == 0 {
		chosen = chosen[1:]
	}
	r.Shuffle(len(chosen), func(i, j int) { chosen[i], chosen[j] = chosen[j], chosen[i] })
	var b strings.Builder
	b.WriteString(pick(r, headers))
	for _, c := range chosen {
		b.WriteString(pick(r, between) + c)
	}
	return pick(r, endings)(b.String() + pick(r, between))
}

// Whatever a person composes: cloud-init finds in it what it found before, and the file.
func TestCloudInitGenerated(t *testing.T) {
	const seed, count = 4, 80
	r := rand.New(rand.NewPCG(seed, seed))
	userData := map[string][]byte{}
	for i := range count {
		in := []byte(generate(r))
		merged, skipped := Merge(in, testFile)
		if skipped != ReasonNone {
			t.Errorf("%s: %q", skipped, in)
		}
		userData[fmt.Sprintf("before-%d", i)], userData[fmt.Sprintf("after-%d", i)] = in, merged
	}
	outcomes := cloudInit(t, t.TempDir(), userData)
	for i := range count {
		before, after := fmt.Sprintf("before-%d", i), fmt.Sprintf("after-%d", i)
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			if len(outcomes[before].Config) == 0 {
				t.Errorf("cloud-init finds nothing in %q", userData[before])
			}
			wantOnlyFile(t, outcomes[before], outcomes[after])
			if t.Failed() {
				t.Logf("from %q\nto %q", userData[before], userData[after])
			}
		})
	}
}
