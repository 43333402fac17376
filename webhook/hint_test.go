package webhook

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"

	"floatip.io/floatip"
)

// vmiWith returns a VMI whose guest has the volumes, and an asset tag, so that hints can only be in user data.
func vmiWith(volumes string) string {
	spec := strings.Replace(masquerade, `"devices"`, `"chassis":{"asset":"mine"},"devices"`, 1)
	spec = strings.Replace(spec, `"networks"`, `"volumes":[`+volumes+`],"networks"`, 1)
	return vmi(`{"floatip.io/address":"192.168.100.50"}`, spec)
}

// source returns a volume's JSON.
func source(kind, fields string) string { return fmt.Sprintf(`{"name":"c","%s":{%s}}`, kind, fields) }

func field64(text string) string {
	return fmt.Sprintf(`"userDataBase64":%q`, base64.StdEncoding.EncodeToString([]byte(text)))
}

const (
	entry = "write_files:\n- path: \"/etc/floatip/floating-ip\"\n  content: \"192.168.100.50\\n\"\n"
	disk  = `{"name":"d","containerDisk":{"image":"x"}}`
	mine  = "#cloud-config\nhostname: web\n"
)

// Of a VMI's spec only the one field of user data changes, and it keeps its kind.
func TestUserDataHint(t *testing.T) {
	const noCloud, configDrive = "cloudInitNoCloud", "cloudInitConfigDrive"
	for _, tc := range []struct{ name, volumes, path, want string }{
		{"plain", source(noCloud, fmt.Sprintf(`"userData":%q`, mine)),
			"/spec/volumes/0/cloudInitNoCloud/userData", mine + entry},
		{"base64", source(noCloud, field64(mine)), "/spec/volumes/0/cloudInitNoCloud/userDataBase64", mine + entry},
		{"config drive", source(configDrive, field64(mine)),
			"/spec/volumes/0/cloudInitConfigDrive/userDataBase64", mine + entry},
		{"second volume", disk + "," + source(noCloud, field64(mine)),
			"/spec/volumes/1/cloudInitNoCloud/userDataBase64", mine + entry},
		{"first of two", source(configDrive, field64(mine)) + "," + source(noCloud, field64("#!/bin/sh\n")),
			"/spec/volumes/0/cloudInitConfigDrive/userDataBase64", mine + entry},
		{"fields of a version to come", source(noCloud, field64(mine)+`,"vendorData":"v"`),
			"/spec/volumes/0/cloudInitNoCloud/userDataBase64", mine + entry},
		{"network data alone", source(noCloud, `"networkData":"version: 2"`), "/spec/volumes/0/cloudInitNoCloud/userData",
			"#cloud-config\n" + entry},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := worldWithVM(t, nil)
			object := vmiWith(tc.volumes)
			response := w.post(PathVMICreate, review{kind: vmiGVK, object: object})
			var patch []struct{ Op, Path, Value string }
			if err := json.Unmarshal(response.Patch, &patch); err != nil || len(patch) != 1 {
				t.Fatalf("%v: %s", err, response.Patch)
			}
			got := patch[0].Value
			if strings.HasSuffix(tc.path, "Base64") {
				raw, err := base64.StdEncoding.DecodeString(got)
				if err != nil {
					t.Fatal(err)
				}
				got = string(raw)
			}
			if patch[0].Op != "add" || patch[0].Path != tc.path {
				t.Errorf("%s %s, want add %s", patch[0].Op, patch[0].Path, tc.path)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			hint := response.AuditAnnotations["hint"]
			if hint != "user data extended" || len(response.Warnings)+len(w.events) > 0 {
				t.Errorf("hint %q, warnings %q, events %q", hint, response.Warnings, w.events)
			}
			again := w.post(PathVMICreate, review{kind: vmiGVK, object: apply(t, object, response)})
			if hint := again.AuditAnnotations["hint"]; len(again.Patch)+len(again.Warnings) > 0 || hint != "user data have the file already" {
				t.Errorf("called again: %s %q, hint %q", again.Patch, again.Warnings, hint)
			}
		})
	}
}

// User data that are left alone are a warning, an event and an audit annotation, and the VM starts.
func TestUserDataHintSkipped(t *testing.T) {
	for _, tc := range []struct{ name, fields, reason string }{
		{"Hi", `"userDataBase64":"SGkuXG4="`, "they are in no format of cloud-init"},
		{"in a Secret", `"secretRef":{"name":"s"}`, "they are in a Secret"},
		{"in a Secret, with network data", `"secretRef":{"name":"s"},"networkData":"version: 2"`, "they are in a Secret"},
		{"two of them", `"userData":"#cloud-config","userDataBase64":"SGkuXG4="`, "there are two of them"},
		{"not base64", `"userDataBase64":"%%%"`, "they are not base64: illegal base64 data at input byte 0"},
		{"compressed", field64("\x1f\x8b\x08"), "they are compressed"},
		{"too long", field64("#cloud-config\n#" + strings.Repeat("x", 1970)), "with it they would be longer than 2048 bytes"},
		{"a MiB", field64("#cloud-config\n#" + strings.Repeat("x", 1<<20)), "with it they would be longer than 2048 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := worldWithVM(t, nil)
			object := vmiWith(source("cloudInitNoCloud", tc.fields))
			response := w.post(PathVMICreate, review{kind: vmiGVK, object: object})
			wantSkipped(t, response, tc.reason)
			events := strings.Join(w.events, "\n")
			if len(w.events) != 1 || !strings.Contains(events, EventHintSkipped) || !strings.Contains(events, tc.reason) {
				t.Errorf("events: %q", w.events)
			}
			quiet := worldWithVM(t, nil)
			wantSkipped(t, quiet.post(PathVMICreate, review{kind: vmiGVK, object: object, dryRun: true}), tc.reason)
			if len(quiet.events) > 0 {
				t.Errorf("events of a dry run: %q", quiet.events)
			}
		})
	}
}

func wantSkipped(t *testing.T, response *admissionv1.AdmissionResponse, reason string) {
	t.Helper()
	if !response.Allowed || len(response.Patch) > 0 {
		t.Errorf("allowed %v, patch %s", response.Allowed, response.Patch)
	}
	if len(response.Warnings) != 1 || !strings.Contains(response.Warnings[0], reason) {
		t.Errorf("warnings %q, want %q", response.Warnings, reason)
	}
	if got := response.AuditAnnotations["hint"]; got != "user data left alone: "+reason {
		t.Errorf("audit annotation %q", got)
	}
}

// What KubeVirt counts is the decoded length: the limit holds for both kinds.
func TestUserDataHintSize(t *testing.T) {
	bare := len("#cloud-config\n#\n" + entry)
	for size, fits := range map[int]bool{2047: true, 2048: true, 2049: false} {
		text := "#cloud-config\n#" + strings.Repeat("x", size-bare) + "\n"
		for _, fields := range []string{field64(text), fmt.Sprintf(`"userData":%q`, text)} {
			w := worldWithVM(t, nil)
			response := w.post(PathVMICreate, review{kind: vmiGVK, object: vmiWith(source("cloudInitNoCloud", fields))})
			if got := len(response.Patch) > 0; got != fits || !response.Allowed {
				t.Errorf("%d bytes: extended %v, want %v: %q", size, got, fits, response.Warnings)
			}
		}
	}
}

// A VM without user data gets none, and a VM may keep its own; both without a warning.
func TestUserDataHintUnwanted(t *testing.T) {
	extensible := source("cloudInitNoCloud", field64("#!/bin/sh\n"))
	own := map[string]string{floatip.AnnotationUserData: "false"}
	const wish = "user data left alone: the VM says floatip.io/user-data: false"
	for _, tc := range []struct {
		name, volumes string
		annotations   map[string]string
		hint          string
	}{
		{"no volumes", "", nil, ""},
		{"a disk", disk, nil, ""},
		{"kept", extensible, own, wish},
		{"kept and unknown", source("cloudInitNoCloud", field64("Hi.")), own, wish},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := worldWithVM(t, tc.annotations)
			response := w.post(PathVMICreate, review{kind: vmiGVK, object: vmiWith(tc.volumes)})
			if !response.Allowed || len(response.Patch) > 0 || len(response.Warnings)+len(w.events) > 0 {
				t.Errorf("%+v, events %q", response, w.events)
			}
			if got := response.AuditAnnotations["hint"]; got != tc.hint {
				t.Errorf("audit annotation %q, want %q", got, tc.hint)
			}
		})
	}
}
