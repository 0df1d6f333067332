"""What a model of VLMEvalKit inherits: `generate` checks the messages, LLaVA has prompts of its own for letters."""


class LLaVA:
    INSTALL_REQ = True
    INTERLEAVE = False

    def set_dump_image(self, function):
        self.dump_image_func = function

    def use_custom_prompt(self, dataset):
        return dataset.endswith("letters")

    def build_prompt(self, line, dataset=None):
        options = "".join(f"\n{letter}. {line[letter]}" for letter in "AB")
        pictures = [{"type": "image", "value": path} for path in self.dump_image_func(line)]
        return [*pictures, {"type": "text", "value": f"{line['question']}{options}\nWhich letter?"}]

    def generate(self, message, dataset=None):
        assert all(set(part) == {"type", "value"} for part in message)
        return self.generate_inner(message, dataset)
