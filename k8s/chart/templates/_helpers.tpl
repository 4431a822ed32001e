{{/* A document of a file of the project: (list . "base/service.yaml" 0). */}}
{{- define "hookgate.document" -}}
{{- $file := (index . 0).Files.Get (printf "files/%s" (index . 1)) -}}
{{- if not $file }}{{ fail (printf "the chart has no files/%s" (index . 1)) }}{{ end -}}
{{- index (regexSplit "(?m)^---$" $file -1) (index . 2) -}}
{{- end -}}

{{/* An object with namespace and the labels of the release: (list . $object). */}}
{{- define "hookgate.object" -}}
{{- $root := index . 0 }}{{ $object := index . 1 -}}
{{- $metadata := $object.metadata -}}
{{- if not (hasKey $metadata "namespace") }}{{ $_ := set $metadata "namespace" $root.Release.Namespace }}{{ end -}}
{{- $labels := $metadata.labels | default dict -}}
{{- $_ := set $labels "app.kubernetes.io/instance" $root.Release.Name -}}
{{- $_ := set $labels "app.kubernetes.io/managed-by" $root.Release.Service -}}
{{- $_ := set $labels "app.kubernetes.io/version" $root.Chart.AppVersion -}}
{{- $_ := set $labels "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version) -}}
{{- $_ := set $metadata "labels" $labels }}
---
{{ toYaml $object }}
{{ end -}}

{{/* A file's object as it is. */}}
{{- define "hookgate.asItIs" -}}
{{- include "hookgate.object" (list (index . 0) (include "hookgate.document" . | fromYaml)) -}}
{{- end -}}

{{/*
A ConfigMap whose name has a hash of its content, so that other content is a rolling update, and old pods keep theirs:
(list . "name" $data). A hook, because Helm takes nothing away that a hook has made. With the resource policy `keep` it would
stay too, but `helm rollback` fails over what was kept.
*/}}
{{- define "hookgate.hashedName" -}}
{{- printf "%s-%s" (index . 1) (index . 2 | toJson | sha256sum | trunc 10) -}}
{{- end -}}
{{- define "hookgate.configMap" -}}
{{- $metadata := dict "name" (include "hookgate.hashedName" .) "annotations" (dict "helm.sh/hook" "pre-install,pre-upgrade,pre-rollback" "helm.sh/hook-weight" "-5" "helm.sh/hook-delete-policy" "before-hook-creation") -}}
{{- if eq (index . 1) "hookgate-config" -}}
{{- $_ := set $metadata "labels" (dict "app.kubernetes.io/name" "hookgate" "app.kubernetes.io/component" "configuration") -}}
{{- end -}}
{{- include "hookgate.object" (list (index . 0) (dict "apiVersion" "v1" "kind" "ConfigMap" "metadata" $metadata "data" (index . 2))) -}}
{{- end -}}

{{/* A value in TOML. JSON's texts, numbers and lists are TOML's too. */}}
{{- define "hookgate.tomlValue" -}}
{{- if kindIs "map" . -}}
{ {{- range $i, $key := keys . | sortAlpha }}{{ if $i }},{{ end }} {{ $key }} = {{ include "hookgate.tomlValue" (index $ $key) }}{{ end }} }
{{- else if kindIs "slice" . -}}
[{{ range $i, $item := . }}{{ if $i }}, {{ end }}{{ include "hookgate.tomlValue" $item }}{{ end }}]
{{- else -}}
{{ toJson . }}
{{- end -}}
{{- end -}}
{{- define "hookgate.tomlTable" -}}
{{- range $key := keys . | sortAlpha }}
{{- if not (kindIs "invalid" (index $ $key)) }}
{{ $key }} = {{ include "hookgate.tomlValue" (index $ $key) }}
{{- end }}
{{- end }}
{{ end -}}

{{/* The values' configuration as a file. */}}
{{- define "hookgate.site" -}}
# Made by Helm from the values.
{{ $tables := . -}}
{{- range $name := keys $tables | sortAlpha }}
{{- $value := index $tables $name }}
{{- if kindIs "map" $value }}
[{{ $name }}]
{{- include "hookgate.tomlTable" $value }}
{{- else if and (kindIs "slice" $value) (eq $name "routes") }}
{{- range $value }}
[[{{ $name }}]]
{{- include "hookgate.tomlTable" . }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Scalars of the top level stand before all tables. */}}
{{- define "hookgate.scalars" -}}
{{- range $name := keys . | sortAlpha }}
{{- $value := index $ $name }}
{{- if not (or (kindIs "map" $value) (kindIs "slice" $value) (kindIs "invalid" $value)) }}
{{ $name }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{ end -}}

{{/* All files of the configuration. */}}
{{- define "hookgate.config" -}}
default.toml: {{ .Files.Get "files/config/default.toml" | toJson }}
kubernetes.toml: {{ .Files.Get "files/base/kubernetes.toml" | toJson }}
site.toml: {{ printf "%s%s" (include "hookgate.scalars" .Values.config) (include "hookgate.site" .Values.config) | toJson }}
{{- end -}}

{{/* The port in the first of an address's servers, or the one that is used without. */}}
{{- define "hookgate.port" -}}
{{- $server := index . 0 | splitList "," | first -}}
{{- $server = regexReplaceAll "^[a-z+]+://" $server "" | splitList "/" | first | splitList "@" | last -}}
{{- regexFind ":[0-9]+$" $server | trimPrefix ":" | default (index . 1) -}}
{{- end -}}

{{/* The way to the stores, in the second and third rule of what a policy lets out to: (list $ $egress). Where sentinels know
     Redis' servers, the way to these, too. */}}
{{- define "hookgate.stores" -}}
{{- $values := (index . 0).Values -}}
{{- $egress := index . 1 -}}
{{- $redis := ($values.config.redis).url -}}
{{- range $i, $store := list (list $values.networkPolicy.redisTo $redis "6379") (list $values.networkPolicy.natsTo ($values.config.nats).url "4222") -}}
{{- $rule := index $egress (add $i 1 | int) -}}
{{- $_ := set $rule "to" (index $store 0 | required "networkPolicy.redisTo and natsTo say where the stores are") -}}
{{- $_ := set (first $rule.ports) "port" (include "hookgate.port" (list (index $store 1) (index $store 2)) | int) -}}
{{- end -}}
{{- if regexMatch "^rediss?[+]sentinel://" $redis -}}
{{- $rule := index $egress 1 -}}
{{- $_ := set $rule "ports" (append $rule.ports (dict "port" 6379 "protocol" "TCP")) -}}
{{- end -}}
{{- end -}}

{{- define "hookgate.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* Image, Secret, variables and place of a pod, as the values say: (list . $spec $configName) */}}
{{- define "hookgate.job" -}}
{{- $root := index . 0 }}{{ $spec := index . 1 -}}
{{- $container := first $spec.containers -}}
{{- $_ := set $container "image" (include "hookgate.image" $root) -}}
{{- $_ := set $container "imagePullPolicy" $root.Values.image.pullPolicy -}}
{{- $_ := set $container "env" (concat $container.env $root.Values.pod.env) -}}
{{- $mounts := list }}{{ range $container.volumeMounts }}{{ if ne .name "secrets" }}{{ $mounts = append $mounts . }}{{ end }}{{ end -}}
{{- $volumes := list }}{{ range $spec.volumes }}{{ if ne .name "secrets" }}{{ $volumes = append $volumes . }}{{ end }}{{ end -}}
{{- $_ := set (first $volumes).configMap "name" (index . 2) -}}
{{- with $root.Values.secrets.name -}}
{{- $volumes = prepend $volumes (dict "name" "secrets" "secret" (dict "secretName" . "defaultMode" 288)) -}}
{{- $mounts = prepend $mounts (dict "name" "secrets" "mountPath" "/run/secrets/hookgate" "readOnly" true) -}}
{{- end -}}
{{- $_ := set $container "volumeMounts" $mounts -}}
{{- $_ := set $spec "volumes" $volumes -}}
{{- with $root.Values.image.pullSecrets }}{{ $names := list }}{{ range . }}{{ $names = append $names (dict "name" .) }}{{ end }}{{ $_ := set $spec "imagePullSecrets" $names }}{{ end -}}
{{- range $key := list "nodeSelector" "tolerations" "priorityClassName" -}}
{{- with index $root.Values.pod $key }}{{ $_ := set $spec $key . }}{{ end -}}
{{- end -}}
{{- toYaml $spec -}}
{{- end -}}

{{/* The same of hookgate itself. */}}
{{- define "hookgate.pod" -}}
{{- $spec := include "hookgate.job" . | fromYaml -}}
{{- $_ := set (first $spec.containers) "resources" (index . 0).Values.resources -}}
{{- toYaml $spec -}}
{{- end -}}
